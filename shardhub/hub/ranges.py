"""Reading a file on a Hub by ranges: streamed in constant memory, resumed if the connection breaks."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardhub.errors import WeightFileError
from shardhub.hub.client import CONNECT_TIMEOUT_S
from shardhub.hub.failures import hub_failures
from shardhub.hub.pace import LEAST_BYTES
from shardhub.hub.retry import NUM_TRIES, headers_of, is_passing, reason, wait_before
from shardhub.hub.whole_answers import WholeAnswers
from shardhub.upstream.hub_client import hub_headers

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

# A body without a byte for this long is considered stalled, and requested again.
STALL_TIMEOUT_S = 10.0
# A jump forward this short is skipped by reading: a new request takes longer.
_SKIP_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for a Hub.

    Attributes:
        stall_timeout_s: Longest time between two bytes of a body.
        num_tries: Most tries in a row that bring less than `LEAST_BYTES`.
        sleep: Waits for a number of seconds.
        notice: Called once for every wait.
    """

    stall_timeout_s: float = STALL_TIMEOUT_S
    num_tries: int = NUM_TRIES
    sleep: Callable[[float], None] = time.sleep
    notice: Callable[[str], None] = lambda _: None


class RemoteFile:
    """A file in a repo at a commit, as a `ByteSource`; a context manager that holds a connection while reading.

    Args:
        api: The Hub's client.
        repo, commit, path: The file.
        size_bytes: Its size in the repo's listing.
        version: Its digest in the listing.
        patience: How long to wait for the Hub.
        whole_answers: What was skipped of the repo's files, because the server ignores ranges.
    """

    def __init__(
        self,
        api: HfApi,
        repo: str,
        commit: str,
        path: str,
        *,
        size_bytes: int,
        version: str,
        patience: Patience | None = None,
        whole_answers: WholeAnswers | None = None,
    ) -> None:
        self.name = f"{repo}/{path}"
        self.size_bytes = size_bytes
        self.version = version
        from huggingface_hub import hf_hub_url

        self._api = api
        self._repo = repo
        self._url = hf_hub_url(repo, path, revision=commit, endpoint=api.endpoint)
        self._direct: str | None = None
        self._patience = patience or Patience()
        self._whole_answers = whole_answers or WholeAnswers()
        self._stream: _Stream | None = None
        self._ahead = (0, 0)

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def read_ahead(self, start: int, stop: int) -> None:
        """Request [start, stop) at once when the first of these bytes is read."""
        self._ahead = (start, min(stop, self.size_bytes))

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `start` on.

        Raises:
            WeightFileError: The file is too short.
            HubRefused: The server ignores ranges, and too much would be read for those that are needed.
            ShardhubError: As `hub_failures`, if retries did not help.
        """
        if start + len(buffer) > self.size_bytes:
            raise WeightFileError(
                f"{self.name} cannot be read.",
                why=f"It ends at byte {self.size_bytes} instead of {start + len(buffer)}.",
                hint="Download the file again from its publisher.",
            )
        done = failures = gained = 0
        while done < len(buffer):
            with hub_failures(f"reading {self.name}", api=self._api, repo=self._repo):
                try:
                    count = self._at(start + done, start + len(buffer)).read_into(buffer[done:])
                except Exception as error:
                    self.close()
                    failures, gained = failures + 1, 0
                    if self._expired(error):
                        continue
                    if failures >= self._patience.num_tries or not is_passing(error):
                        raise
                    wait_s = wait_before(failures, headers_of(error))
                    self._patience.notice(f"{self.name}: {reason(error)}, trying again in {wait_s:.0f} s")
                    self._patience.sleep(wait_s)
                    continue
            done, gained = done + count, gained + count
            if gained >= LEAST_BYTES:
                failures = 0

    def _at(self, start: int, stop: int) -> _Stream:
        """A stream positioned at `start` that reaches at least `stop`, unless the announced range ends before."""
        stream = self._stream
        if stream is None or not stream.leads_to(start):
            self.close()
            if self._ahead[0] <= start < self._ahead[1]:
                stop = max(stop, self._ahead[1])
            self._stream = stream = self._open(start, stop)
        if stream.is_whole:
            self._whole_answers.skip(
                self.name,
                start - stream.at,
                size_bytes=self.size_bytes,
                server=stream.server,
                notice=self._patience.notice,
            )
        stream.skip(start)
        return stream

    def _open(self, start: int, stop: int) -> _Stream:
        import httpx2
        from huggingface_hub import get_session, hf_raise_for_status

        session = get_session()
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if self._direct is None:
            headers |= hub_headers(self._api)
        timeout = httpx2.Timeout(self._patience.stall_timeout_s, connect=CONNECT_TIMEOUT_S)
        request = session.build_request("GET", self._direct or self._url, headers=headers, timeout=timeout)
        response = session.send(request, stream=True)
        try:
            if response.is_error:
                response.read()
            hf_raise_for_status(response)
            if response.history and response.url.host != request.url.host:
                # The store behind the Hub is asked directly from now on, without the token. Its address expires.
                self._direct = str(response.url)
            return self._checked(response, start, stop)
        except BaseException:
            response.close()
            raise

    def _checked(self, response: httpx2.Response, start: int, stop: int) -> _Stream:
        """The body, after checking that status, range, length and encoding match the request."""
        import httpx2
        from huggingface_hub.errors import FileMetadataError

        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise FileMetadataError("The answer is a web page instead of the file.")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise httpx2.DecodingError(
                "The body is compressed, although that was not requested.", request=response.request
            )
        first = start
        if response.status_code == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            announced = tuple(map(int, match.groups())) if match else None
            if announced != (start, stop - 1, self.size_bytes):
                raise httpx2.RemoteProtocolError(
                    f"Bytes {start} to {stop - 1} were requested, but the answer has {announced}."
                )
        is_whole = response.status_code != 206
        if is_whole:  # the server ignores ranges and sends the file from its start
            first, stop = 0, self.size_bytes
        length = response.headers.get("Content-Length")
        if length is not None and length != str(stop - first):
            raise httpx2.RemoteProtocolError(f"{stop - first} bytes were expected, but {length[:20]} were announced.")
        return _Stream(response, first, stop, is_whole=is_whole)

    def _expired(self, error: Exception) -> bool:
        """Whether the store's address has expired, so that the Hub must be asked for a new one."""
        response = getattr(error, "response", None)
        if self._direct is None or response is None or response.status_code not in (400, 401, 403, 404, 410):
            return False
        self._direct = None
        return True


class _Stream:
    """The body of one answer: the bytes [at, stop) of the file, in order; `is_whole` if the server ignores ranges."""

    def __init__(self, response: httpx2.Response, at: int, stop: int, *, is_whole: bool) -> None:
        self.at = at
        self.stop = stop
        self.is_whole = is_whole
        self._response = response
        self._chunks: Iterator[bytes] = response.iter_raw()
        self._rest = memoryview(b"")

    @property
    def server(self) -> tuple[str, str, int | None]:
        """Scheme, host and port of the server that answered."""
        url = self._response.url
        return url.scheme, url.host, url.port

    def leads_to(self, start: int) -> bool:
        """Whether the byte `start` is reached sooner by skipping than by a new request."""
        return self.at <= start < self.stop and (self.is_whole or start - self.at <= _SKIP_BYTES)

    def read_into(self, buffer: memoryview) -> int:
        """Read the next bytes, at least one, into `buffer`."""
        chunk = self._next()
        count = min(len(chunk), len(buffer))
        buffer[:count] = chunk[:count]
        self._rest = chunk[count:]
        self.at += count
        return count

    def skip(self, to: int) -> None:
        """Skip the bytes before `to`."""
        while self.at < to:
            chunk = self._next()
            count = min(len(chunk), to - self.at)
            self._rest = chunk[count:]
            self.at += count

    def close(self) -> None:
        """Close the connection, unless the body was read to its end: then the next request uses it."""
        if self.at == self.stop and "Content-Length" in self._response.headers:
            next(self._chunks, None)  # the client takes note of the end only when it is asked for more
        self._response.close()

    def _next(self) -> memoryview:
        import httpx2

        if len(self._rest):
            return self._rest
        chunk = memoryview(next(self._chunks, b""))
        if not len(chunk) or self.at + len(chunk) > self.stop:
            fault = "ended early" if not len(chunk) else "is longer than announced"
            raise httpx2.RemoteProtocolError(f"The body {fault}, at byte {self.at} of {self.stop}.")
        return chunk
