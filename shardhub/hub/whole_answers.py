"""Servers that answer a request for a range of a file with the whole file: how much may be read only to be skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from threading import Lock

from shardhub.errors import HubRefused
from shardhub.hub.proxies import proxy_of, shown
from shardhub.sizes import size_text

# Skipping this much takes seconds, so that a file is not refused only because it is small.
_FREE_BYTES = 64 << 20


class WholeAnswers:
    """Bytes of a repo's files that were read only to be skipped; threads share it."""

    def __init__(self) -> None:
        self._skipped: Counter[str] = Counter()
        self._is_reported = False
        self._lock = Lock()

    def skip(
        self,
        file: str,
        num_bytes: int,
        *,
        size_bytes: int,
        server: tuple[str, str, int | None],
        notice: Callable[[str], None],
    ) -> None:
        """Count bytes of a file that have to be skipped, before they are.

        Args:
            file: The file, for messages.
            num_bytes: Bytes to be skipped.
            size_bytes: The file's size.
            server: Scheme, host and port of the server that sends the whole file.
            notice: Called at the first such file of the repo.

        Raises:
            HubRefused: More would be skipped than the file has.
        """
        if not num_bytes:
            return
        proxy = proxy_of(*server)
        name = f"{server[1]} (through the proxy {shown(proxy)})" if proxy else server[1]
        with self._lock:
            self._skipped[file] += num_bytes
            skipped_bytes, is_first = self._skipped[file], not self._is_reported
            self._is_reported = True
        if is_first:
            notice(f"{name} sends whole files where only ranges are requested: {file} is read from its start")
        if skipped_bytes > max(size_bytes, _FREE_BYTES):
            raise HubRefused(
                f"{name} does not send ranges of {file}.",
                why=f"It sends the whole file each time: of {size_text(size_bytes)}, {size_text(skipped_bytes)} would "
                "have been read only to be skipped.",
                hint="If a proxy or a cache is on the way, have it pass on the header Range, or name the Hub's host in "
                "NO_PROXY. Otherwise bring the repo to a Hub of your own: `shardhub hub mirror` reads whole files.",
            )
