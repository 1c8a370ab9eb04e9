"""Retrying calls that a Hub was too busy for, after the delay that it asks for."""

from __future__ import annotations

import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

T = TypeVar("T")

# Enough for a short overload; longer waits are for the user to decide.
NUM_TRIES = 5
MAX_WAIT_S = 60.0
_FIRST_WAIT_S = 1.0
_BACKOFF_CAP_S = 8.0
BUSY = frozenset({429, 500, 502, 503, 504})
# Statuses by which the Hub says that it did nothing.
_NOT_DONE = frozenset({429, 503})
# OpenSSL's reasons where the other side does not speak TLS; which of them depends on its version.
NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"})
_RATE_LIMIT = re.compile(r"\br=0;t=(\d{1,6})\b")


def with_retries(
    call: Callable[[], T],
    *,
    what: str,
    repeatable: bool = True,
    notice: Callable[[str], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
    num_tries: int = NUM_TRIES,
) -> T:
    """Make a call, and repeat it while the Hub is busy or the connection breaks.

    Args:
        call: The call, which the client itself makes only once; raises errors of huggingface_hub or `httpx2`.
        what: What it does, for `notice`, such as "reading ORG/MODEL".
        repeatable: Whether the call may be repeated if its answer was lost. If not, it is repeated only after answers
            that say nothing was done (429, 503) and after connections that were never established.
        notice: Called once for every wait.
        sleep: Waits for a number of seconds.
        num_tries: Most calls.

    Raises:
        The last try's error, unchanged: map it with `failures.hub_failures`.
    """
    for number in range(1, num_tries + 1):
        try:
            return call()
        except Exception as error:
            if number == num_tries or not is_passing(error, repeatable=repeatable):
                raise
            wait_s = wait_before(number, headers_of(error))
            notice(f"{what}: {reason(error)}, trying again in {wait_s:.0f} s ({number} of {num_tries - 1})")
            sleep(wait_s)
    raise AssertionError("unreachable")


def is_passing(error: Exception, *, repeatable: bool = True) -> bool:
    """Whether the same call may succeed a little later."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    error = original(error)
    if isinstance(error, HfHubHTTPError | httpx2.HTTPStatusError):
        return error.response is not None and error.response.status_code in (BUSY if repeatable else _NOT_DONE)
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return not is_lasting(error)
    lost = httpx2.TimeoutException | httpx2.NetworkError | httpx2.RemoteProtocolError
    return repeatable and isinstance(error, lost)


def wait_before(number: int, headers: Mapping[str, str]) -> float:
    """Seconds to wait after try `number`, from 1: what the Hub asks for, at most 60, else longer each time.

    The waits are randomised, so that clients that were refused together do not return together.
    """
    requested_s = _asked(headers)
    if requested_s is not None:
        return min(MAX_WAIT_S, requested_s + random.uniform(0, 1))  # noqa: S311
    longest = min(_BACKOFF_CAP_S, _FIRST_WAIT_S * 2 ** (number - 1))
    return random.uniform(longest / 2, longest)  # noqa: S311


def headers_of(error: Exception) -> Mapping[str, str]:
    """Headers of the answer that caused an error; empty without an answer."""
    response = getattr(error, "response", None)
    return {} if response is None else {key.lower(): value for key, value in response.headers.items()}


def reason(error: Exception) -> str:
    """A short description of an error."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"the Hub answered {response.status_code}"
    return "no answer" if "Timeout" in type(original(error)).__name__ else "the connection broke"


def original(error: Exception) -> Exception:
    """The error that our transport has put into another one so that the client does not retry; else the error."""
    import httpx2

    cause = error.__cause__
    return cause if type(error) is httpx2.TransportError and isinstance(cause, httpx2.TransportError) else error


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def is_lasting(error: Exception) -> bool:
    """Whether a connection will fail a few seconds later too: the name or the server's TLS is wrong."""
    return any(
        isinstance(cause, socket.gaierror | ssl.SSLCertVerificationError)
        or (isinstance(cause, ssl.SSLError) and cause.reason in NOT_TLS)
        or "CERTIFICATE_VERIFY_FAILED" in str(cause)
        for cause in causes(error)
    )


def _asked(headers: Mapping[str, str]) -> float | None:
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    if text:
        try:
            until = parsedate_to_datetime(text)
        except ValueError:
            return None
        return max(0.0, (until.astimezone(UTC) - datetime.now(UTC)).total_seconds())
    match = _RATE_LIMIT.search(headers.get("ratelimit", ""))
    return float(match[1]) if match else None
