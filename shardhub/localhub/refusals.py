"""Every way the local Hub says no, with the headers huggingface_hub reads.

Source: huggingface_hub 2.4.0, utils/_http.py `hf_raise_for_status`: `X-Error-Code` picks the exception's class. On
plain http the client infers nothing from a 401, so the code must be there.
"""

from __future__ import annotations

import errno
import logging
import os

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shardhub.errors import ShardhubError, outcome

log = logging.getLogger(__name__)

# Longest text that goes into a header; the body carries all of it.
_MAX_HEADER_CHARS = 1000
# What to a client is as if the disk were full, and what passes when others are done.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_PASSING_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_RETRY_AFTER_S = 5


class Refusal(Exception):
    """An answer other than the one asked for.

    Args:
        status: HTTP status.
        message: What is wrong and what to do, for the person at the client.
        code: `X-Error-Code`, which chooses the client's exception.
        headers: Further headers.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}

    def response(self, **fields: object) -> Response:
        """The answer to send; `fields` go into its JSON body."""
        # It may repeat what was asked for, so nothing but printable ASCII gets into a header.
        text = "".join(char if " " <= char <= "~" else "?" for char in self.message[:_MAX_HEADER_CHARS])
        headers = {"X-Error-Message": text, **self.headers}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        return JSONResponse({"error": self.message, **fields}, status_code=self.status, headers=headers)


async def answer_refusal(_: Request, refusal: Exception) -> Response:
    """Starlette's handler of `Refusal`."""
    assert isinstance(refusal, Refusal)
    return refusal.response()


async def answer_error(_: Request, error: Exception) -> Response:
    """Starlette's handler of our own errors: a database that is locked or cannot be written, as a rule."""
    assert isinstance(error, ShardhubError)
    log.error("%s", error)
    return _unable(outcome(error).http, f"{error.what} {error.hint}".strip()).response()  # why: folders of this machine


async def answer_system(_: Request, error: Exception) -> Response:
    """Starlette's handler of what the system refuses: for want of room 507, for want of files or memory 503."""
    assert isinstance(error, OSError)
    text = os.strerror(error.errno) if error.errno else ""
    if error.errno in _DISK_ERRORS:
        log.error("%s", error)
        return _unable(507, f"The Hub's disk takes no more: {text}.").response()
    if error.errno in _PASSING_ERRORS:
        log.error("%s", error)
        return _unable(503, f"The Hub cannot answer this now: {text}.").response()
    raise error


def _unable(status: int, message: str) -> Refusal:
    return Refusal(status, message, headers={"Retry-After": str(_RETRY_AFTER_S)} if status == 503 else None)


def bad_request(message: str) -> Refusal:
    """The request itself is wrong."""
    return Refusal(400, message)


def no_credentials() -> Refusal:
    """A call that needs a token came without one."""
    return Refusal(401, "This call needs a token: make one with `shardhub hub token`.")


def wrong_credentials() -> Refusal:
    """A token this Hub did not make, or revoked."""
    # This very text keeps the client from reporting a missing repo instead.
    return Refusal(401, "Invalid credentials in Authorization header")


def forbidden(message: str) -> Refusal:
    """The token does not allow it."""
    return Refusal(403, message)


def repo_not_found(repo_id: str) -> Refusal:
    """Absent, or private to others: the two must look the same."""
    return Refusal(404, f"Repository {repo_id} not found.", code="RepoNotFound")


def revision_not_found(revision: str) -> Refusal:
    """No such branch, tag or commit in the repo."""
    return Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(path: str, *, commit: str | None = None) -> Refusal:
    """No such file or folder; with the commit, the client remembers that."""
    headers = {"X-Repo-Commit": commit} if commit else None
    return Refusal(
        404, f'Entry "{path}" not found: A file with this name doesn\'t exist', code="EntryNotFound", headers=headers
    )


def too_large(what: str, limit_bytes: int) -> Refusal:
    """A body or file beyond a limit."""
    return Refusal(413, f"{what} is larger than {limit_bytes} bytes.")


def no_room(needed_bytes: int, free_bytes: int) -> Refusal:
    """The Hub's disk is too full for it."""
    return Refusal(507, f"The Hub's disk has no room: {needed_bytes} bytes needed, {max(free_bytes, 0)} free.")
