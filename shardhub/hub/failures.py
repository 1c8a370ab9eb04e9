"""The table that maps what the Hub's client raises to our errors."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shardhub.errors import (
    AccessError,
    Conflict,
    HubRefused,
    HubUnreachable,
    NotFound,
    ShardhubError,
    UsageError,
)
from shardhub.hub.client import token_source, token_variable
from shardhub.hub.proxies import proxy_of, shown
from shardhub.hub.retry import NOT_TLS, causes, original

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_MAX_TEXT = 200
# OpenSSL's verify codes: the certificate's time, and its host name or address.
_EXPIRED = 10
_WRONG_TIME = {9, _EXPIRED}
_WRONG_HOST = {62, 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """The circumstances in which the client raised an error.

    Attributes:
        what: What was being done, such as "reading ORG/MODEL".
        repo: The repo concerned.
        revision: The revision requested.
        api: The client, which knows where its token came from.
    """

    what: str
    api: HfApi
    repo: str | None = None
    revision: str | None = None

    @property
    def place(self) -> str:
        """The repo's name for people."""
        return self.repo or "the Hub"


@contextmanager
def hub_failures(what: str, *, api: HfApi, repo: str | None = None, revision: str | None = None) -> Iterator[None]:
    """Turn errors of the client inside the block into ours.

    Args:
        what: What is being done, such as "reading ORG/MODEL".
        api: The client.
        repo, revision: The repo and revision concerned.

    Raises:
        NotFound: The repo, revision or file does not exist, or the token may not see it.
        AccessError: The Hub requires a token, or another one.
        Conflict: The repo changed meanwhile, or its name is taken.
        HubUnreachable: There is no network, no answer, or an answer that does not come from a Hub.
        HubRefused: The Hub refused for another reason.
    """
    try:
        yield
    except ShardhubError:
        raise
    except Exception as error:
        mapped = explain(error, Circumstances(what=what, api=api, repo=repo, revision=revision))
        if mapped is None:
            raise
        raise mapped from error


def explain(error: Exception, at: Circumstances) -> ShardhubError | None:
    """Our error for one that the client raised; None for errors of other origin."""
    rows = table()
    for kind in type(error).__mro__:
        if kind in rows:
            return rows[kind](error, at)
    return None


def table() -> dict[type[BaseException], Callable[[Exception, Circumstances], ShardhubError]]:
    """The row of each class; an error's nearest class decides, and a test checks that every HTTP error has a row."""
    import httpx2
    from huggingface_hub import errors as hub

    return {
        hub.GatedRepoError: _gated,
        hub.RepositoryNotFoundError: _no_repo,
        hub.RevisionNotFoundError: _no_revision,
        hub.RevisionResolutionError: _no_revision,
        hub.RemoteEntryNotFoundError: _no_entry,
        hub.EntryNotFoundError: _no_entry,
        hub.DisabledRepoError: _disabled,
        hub.BadRequestError: _refused,
        # Raised by services that we do not use.
        hub.BucketNotFoundError: _refused,
        hub.BucketBatchError: _refused,
        hub.JobNotFoundError: _refused,
        hub.HfHubHTTPError: _by_status,
        hub.HFValidationError: _bad_name,
        hub.LocalTokenNotFoundError: _no_token,
        hub.OfflineModeIsEnabled: _offline,
        hub.FileMetadataError: _not_a_hub,
        httpx2.HTTPStatusError: _by_status,
        httpx2.InvalidURL: _unreachable,
        httpx2.HTTPError: _unreachable,
        ConnectionError: _unreachable,  # also raised by the Xet client
        # The client parses JSON before it checks anything else.
        json.JSONDecodeError: _not_a_hub,
    }


def _gated(error: Exception, at: Circumstances) -> ShardhubError:
    return AccessError(
        f"{at.place} is gated: its owner must grant you access first.",
        why=f"Tried with {token_source(at.api)}.",
        hint=f"Request access at {at.api.endpoint}/{at.repo}, then use a token of the account that received it "
        f"({token_variable(at.api)}).",
    )


def _no_repo(error: Exception, at: Circumstances) -> ShardhubError:
    kind = AccessError if _status(error) == 401 else NotFound
    return kind(
        f"The repo {at.place} does not exist at {at.api.endpoint}, or it is private.",
        why=f"Tried with {token_source(at.api)}.",
        hint=f"Check the name. If the repo is private, use a token that can read it ({_token_ways(at)}).",
    )


def _no_revision(error: Exception, at: Circumstances) -> ShardhubError:
    return NotFound(
        f"{at.place} does not have the revision {at.revision!r}."
        if at.revision
        else f"{at.place} does not have this revision.",
        hint="Leave out @REVISION for the newest, or give a branch, a tag, or 7 or more digits of a commit.",
    )


def _no_entry(error: Exception, at: Circumstances) -> ShardhubError:
    return NotFound(f"{at.place} does not have a file that is needed.", why=f"While {at.what}: {_said(error)}")


def _disabled(error: Exception, at: Circumstances) -> ShardhubError:
    return AccessError(f"The Hub has disabled {at.place}.", why=_said(error))


def _by_status(error: Exception, at: Circumstances) -> ShardhubError:
    status = _status(error)
    if status in (401, 403):
        return _no_access(error, at)
    if status in (409, 412):
        return Conflict(
            f"{at.place} was changed by somebody else, or its name is taken.",
            why=f"While {at.what}, the Hub answered {status}: {_said(error)}",
            hint="Run the same command again: it starts from the repo's present state.",
        )
    if status == 404:
        return NotFound(f"{at.place} was not found at {at.api.endpoint}.", why=f"While {at.what}: {_said(error)}")
    if status == 429 or status >= 500:
        return HubUnreachable(
            f"{at.api.endpoint} is too busy."
            if status in (429, 503)
            else f"{at.api.endpoint} reports an error of its own.",
            why=f"While {at.what}, it answered {status} each time: {_said(error)}",
            hint="Run the same command again later: it continues where it stopped.",
        )
    return _refused(error, at)


def _no_access(error: Exception, at: Circumstances) -> ShardhubError:
    source = token_source(at.api)
    return AccessError(
        f"{at.api.endpoint} does not allow {at.what}.",
        why=f"It answered {_status(error)} to {source}: {_said(error)}",
        hint=f"Set {token_variable(at.api)} to a token that has this right."
        if source == "no token"
        else f"Use another token ({token_variable(at.api)}), or ask its owner for access.",
    )


def _refused(error: Exception, at: Circumstances) -> ShardhubError:
    return HubRefused(f"{at.api.endpoint} refused {at.what}.", why=f"It answered {_status(error)}: {_said(error)}")


def _bad_name(error: Exception, at: Circumstances) -> ShardhubError:
    return UsageError(f"{at.place} is not the name of a repo.", why=_said(error), hint="Write ORG/NAME.")


def _no_token(error: Exception, at: Circumstances) -> ShardhubError:
    return AccessError(
        f"A token is needed for {at.what}, and none was given.",
        hint="Set HF_TOKEN, or log in once with `hf auth login`.",
    )


def _offline(error: Exception, at: Circumstances) -> ShardhubError:
    return HubUnreachable(
        f"{at.place} cannot be reached.", why="HF_HUB_OFFLINE is set.", hint="Unset it, or use what is already cached."
    )


def _unreachable(error: Exception, at: Circumstances) -> ShardhubError:
    text = _said(error)
    for cause in causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _untrusted(cause, at)
        if isinstance(cause, ssl.SSLError) and cause.reason in NOT_TLS:
            plain = at.api.endpoint.replace("https://", "http://", 1)
            return HubUnreachable(
                f"The server at {at.api.endpoint} does not speak TLS.",
                why=f"While {at.what}, it did not answer the handshake in TLS.",
                hint=f"If it is a Hub of your own that is served without TLS, its address is {plain}. Otherwise check "
                "the host and port.",
            )
    url = urlsplit(at.api.endpoint)
    proxy = proxy_of(url.scheme, url.hostname or "", None)
    through = f" (through the proxy {shown(proxy)} that the environment sets)" if proxy else ""
    return HubUnreachable(
        f"No answer from {at.api.endpoint}.",
        why=f"While {at.what}{through}: {text}",
        hint="Check the network and HF_ENDPOINT, then run the same command again: it continues where it stopped.",
    )


def _untrusted(cause: ssl.SSLCertVerificationError, at: Circumstances) -> ShardhubError:
    host = urlsplit(at.api.endpoint).hostname
    what = f"This machine does not trust the certificate of {at.api.endpoint}."
    said = f"{cause.verify_message}.".replace("..", ".")
    if cause.verify_code in _WRONG_HOST:
        return HubUnreachable(
            what,
            why=f"The certificate is not for {host}.",
            hint="Use one of the names that `shardhub hub serve` printed there, or start it with `host` or "
            "`public_url` as clients call it.",
        )
    if cause.verify_code in _WRONG_TIME:
        is_over = cause.verify_code == _EXPIRED
        return HubUnreachable(
            what,
            why="The certificate has expired, or this machine's clock is wrong."
            if is_over
            else "The certificate is not valid yet: one of the two machines' clocks is wrong.",
            hint="Check the clocks. A Hub of your own renews its certificate when it is started.",
        )
    return HubUnreachable(
        what,
        why=f"Neither a public authority nor this machine's cluster issued it ({said.rstrip('.')}).",
        hint="If it is a Hub of your own, join its cluster with `shardhub certs join`. If a company's proxy is on the "
        "way, set SSL_CERT_FILE to its certificates.",
    )


def _not_a_hub(error: Exception, at: Circumstances) -> ShardhubError:
    return HubUnreachable(
        f"The server at {at.api.endpoint} is not a Hub.",
        why=f"While {at.what}, the answer could not be read: {_said(error)}",
        hint="Check HF_ENDPOINT, and open the address in a browser: this network may ask for a login first.",
    )


def _token_ways(at: Circumstances) -> str:
    variable = token_variable(at.api)
    return f"{variable}, or `hf auth login`" if variable == "HF_TOKEN" else variable


def _status(error: Exception) -> int:
    response = getattr(error, "response", None)
    return 0 if response is None else int(response.status_code)


def _header(error: Exception, name: str) -> str:
    response = getattr(error, "response", None)
    return "" if response is None else str(response.headers.get(name, ""))


def _said(error: Exception) -> str:
    """What the Hub or the network reported, in one short line without URLs, which may carry signatures."""
    text = getattr(error, "server_message", None) or _header(error, "X-Error-Message")
    if not text:
        error = original(error)
        text = (
            type(error).__name__ if getattr(error, "response", None) is not None else f"{type(error).__name__}: {error}"
        )
    words = [word for word in " ".join(str(text).split()).split(" ") if "://" not in word]
    line = " ".join(words)
    if len(line) > _MAX_TEXT:
        return f"{line[:_MAX_TEXT]}..."
    return line if line.endswith((".", "!", "?")) else f"{line}."
