"""Every refusal of the local Hub, with the headers that huggingface_hub reads.

Source: huggingface_hub 2.4.0, utils/_http.py `hf_raise_for_status`: `X-Error-Code` picks the exception's class. On
plain http the client infers nothing from a 401, so the code is required.
"""

from __future__ import annotations

import errno
import logging
import os

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shardhub.errors import ShardhubError, outcome

log = logging.getLogger(__name__)

# Longest text in a header; the body contains all of it.
_MAX_HEADER_CHARS = 1000
# Errors that are reported to the client as a full disk, and temporary ones that pass when other requests are done.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_PASSING_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_RETRY_AFTER_S = 5


class Refusal(Exception):
    """An HTTP error answer.

    Args:
        status: HTTP status.
        message: What is wrong and what to do, for the user of the client.
        code: `X-Error-Code`, which selects the client's exception.
        headers: Additional headers.
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
        """The answer to send; `fields` are added to its JSON body."""
        # The message may repeat input, so only printable ASCII goes into a header.
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
    """Starlette's handler of our own errors: usually a database that is locked or cannot be written."""
    assert isinstance(error, ShardhubError)
    log.error("%s", error)
    return _unable(outcome(error).http, f"{error.what} {error.hint}".strip()).response()  # why: folders of this machine


async def answer_system(_: Request, error: Exception) -> Response:
    """Starlette's handler of system errors: 507 for lack of disk space, 503 for lack of files or memory."""
    assert isinstance(error, OSError)
    text = os.strerror(error.errno) if error.errno else ""
    if error.errno in _DISK_ERRORS:
        log.error("%s", error)
        return _unable(507, f"The Hub cannot write to its disk: {text}.").response()
    if error.errno in _PASSING_ERRORS:
        log.error("%s", error)
        return _unable(503, f"The Hub cannot answer this request now: {text}.").response()
    raise error


def _unable(status: int, message: str) -> Refusal:
    return Refusal(status, message, headers={"Retry-After": str(_RETRY_AFTER_S)} if status == 503 else None)


def bad_request(message: str) -> Refusal:
    """400: the request itself is wrong."""
    return Refusal(400, message)


def no_credentials() -> Refusal:
    """401: a call that needs a token came without one."""
    return Refusal(
        401, "This call needs a token: make one with `shardhub hub token` on the Hub's machine, and set HF_TOKEN to it."
    )


def wrong_credentials() -> Refusal:
    """401: this Hub did not make the token, or revoked it."""
    # Exactly this text keeps the client from reporting a missing repo instead.
    return Refusal(401, "Invalid credentials in Authorization header")


def forbidden(message: str) -> Refusal:
    """403: the token does not allow the call."""
    return Refusal(403, message)


def repo_not_found(repo_id: str) -> Refusal:
    """404: the repo is absent, or private to others; the two must be indistinguishable."""
    return Refusal(404, f"Repository {repo_id} not found.", code="RepoNotFound")


def revision_not_found(revision: str) -> Refusal:
    """404: the repo has no such branch, tag or commit."""
    return Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(path: str, *, commit: str | None = None) -> Refusal:
    """404: there is no such file or folder; if given the commit, the client caches that."""
    headers = {"X-Repo-Commit": commit} if commit else None
    return Refusal(
        404, f'Entry "{path}" not found: A file with this name doesn\'t exist', code="EntryNotFound", headers=headers
    )


def too_large(what: str, limit_bytes: int) -> Refusal:
    """413: a body or file exceeds a limit."""
    return Refusal(413, f"{what} is larger than {limit_bytes} bytes.")


def no_room(needed_bytes: int, free_bytes: int) -> Refusal:
    """507: the Hub's disk is too full."""
    return Refusal(507, f"The Hub's disk has no room: {needed_bytes} bytes needed, {max(free_bytes, 0)} free.")
