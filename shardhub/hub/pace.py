"""The least rate of an answer's body: a server that sends a byte now and then is as bad as a silent one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2

# Fewer bytes than this in a period count as a stall. Lines may be slow, but at this rate (64 KiB a minute for files) a
# weight file takes days.
LEAST_BYTES = 64 << 10
# A period, in read timeouts.
NUM_TIMEOUTS = 6


def require_pace(response: httpx2.Response, request: httpx2.Request) -> None:
    """Have reading a response's body fail if it comes too slowly; only the time spent waiting for it counts.

    Reading then raises `httpx2.TransportError` from `ReadTimeout`: the client would repeat the request by itself after
    the latter, as `proxies.make_transport` says.
    """
    import httpx2

    timeout_s = request.extensions.get("timeout", {}).get("read")
    if timeout_s is None or not isinstance(response.stream, httpx2.SyncByteStream):
        return
    stream: httpx2.SyncByteStream = response.stream
    period_s = NUM_TIMEOUTS * timeout_s

    class Paced(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            num_bytes, waited_s = 0, 0.0
            chunks = iter(stream)
            while True:
                began_s = time.monotonic()
                chunk = next(chunks, None)
                if chunk is None:
                    return
                num_bytes, waited_s = num_bytes + len(chunk), waited_s + time.monotonic() - began_s
                if waited_s >= period_s:
                    if num_bytes < LEAST_BYTES:
                        text = f"Only {num_bytes} bytes came in {waited_s:.0f} s."
                        raise httpx2.TransportError(text, request=request) from httpx2.ReadTimeout(text)
                    num_bytes, waited_s = 0, 0.0
                yield chunk

        def close(self) -> None:
            stream.close()

    response.stream = Paced()
