"""Trying again what a Hub was too busy for, as often and as late as it asks."""

from __future__ import annotations

import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

T = TypeVar("T")

# Enough to sit out a short overload; longer waits are the reader's to decide on.
NUM_TRIES = 5
MAX_WAIT_S = 60.0
_FIRST_WAIT_S = 1.0
_BACKOFF_CAP_S = 8.0
BUSY = frozenset({429, 500, 502, 503, 504})
# Of these the Hub says that it did nothing.
_NOT_DONE = frozenset({429, 503})
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
    """Make a call that the client makes only once, again while the Hub is busy or the connection breaks.

    Args:
        call: The call; raises what huggingface_hub raises, or `httpx2` errors.
        what: What it does, for `notice`: "reading ORG/MODEL".
        repeatable: Whether a call whose answer was lost may be made again. If not, only what the Hub says it did
            not do (429, 503) and connections that never stood are tried again.
        notice: Told once for every wait.
        sleep: Waits so many seconds.
        num_tries: Calls at most.

    Raises:
        Whatever the last try raised, as it is: map it with `failures.hub_failures`.
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

    if isinstance(error, HfHubHTTPError | httpx2.HTTPStatusError):
        return error.response is not None and error.response.status_code in (BUSY if repeatable else _NOT_DONE)
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return not _is_lasting(error)
    lost = httpx2.TimeoutException | httpx2.NetworkError | httpx2.RemoteProtocolError
    return repeatable and isinstance(error, lost)


def wait_before(number: int, headers: Mapping[str, str]) -> float:
    """Seconds to wait after the `number`th try, from 1: what the Hub asks for, at most 60, else more each time.

    The waits are drawn, so that many clients that were refused together do not come back together.
    """
    asked = _asked(headers)
    if asked is not None:
        return min(MAX_WAIT_S, asked + random.uniform(0, 1))  # noqa: S311
    longest = min(_BACKOFF_CAP_S, _FIRST_WAIT_S * 2 ** (number - 1))
    return random.uniform(longest / 2, longest)  # noqa: S311


def headers_of(error: Exception) -> Mapping[str, str]:
    """Headers of the answer that an error comes from; empty where there was none."""
    response = getattr(error, "response", None)
    return {} if response is None else {key.lower(): value for key, value in response.headers.items()}


def reason(error: Exception) -> str:
    """An error in three words."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"the Hub answered {response.status_code}"
    return "no answer" if "Timeout" in type(error).__name__ else "the connection broke"


def _is_lasting(error: Exception) -> bool:
    """Whether a connection will not stand a few seconds later either: no network to ask for names, no trust."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror | ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


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
    found = _RATE_LIMIT.search(headers.get("ratelimit", ""))
    return float(found[1]) if found else None
