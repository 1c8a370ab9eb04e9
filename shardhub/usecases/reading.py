"""The process that reads weight files for a resident: an order comes in, reports of what is read go out."""

from __future__ import annotations

import time
from collections.abc import Callable

from shardhub.errors import ShardhubError
from shardhub.hub.cache import Cache
from shardhub.manifest import decode, encode
from shardhub.resident.order import MAX_ORDER_BYTES
from shardhub.resident.reading import ReadReport
from shardhub.resident.records import Failure
from shardhub.splitting.file_order import FileOrder
from shardhub.usecases.cluster_cut import read_files
from shardhub.usecases.watcher import Progress

# Shortest time between two reports.
_REFRESH_S = 0.2


class ReportingWatcher:
    """A watcher that writes what it is told as reports, each on a line.

    Args:
        write: Writes a line.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._written_at = float("-inf")

    def note(self, text: str) -> None:
        """Report it as what is done now."""
        self.report(ReadReport(doing=text[:500]))

    def doing(self, activity: str) -> None:
        """Do nothing: progress says more."""

    def progress(self, state: Progress) -> None:
        """Report the progress, a few times a second."""
        now = time.monotonic()
        if state.is_finished or now - self._written_at >= _REFRESH_S:
            self._written_at = now
            doing = f"{state.activity} {state.item}"[:500]
            self.report(ReadReport(doing=doing, done_bytes=state.done, total_bytes=state.total))

    def ask(self, question: str) -> bool | None:
        """Nobody is there to answer."""
        return None

    def report(self, report: ReadReport) -> None:
        """Write a report."""
        self._write(encode(report) + b"\n")


def answer_order(data: bytes, write: Callable[[bytes], None]) -> int:
    """Read the files of an order into this user's cache; returns the exit code.

    Args:
        data: The order.
        write: Writes a line of reports.
    """
    watcher = ReportingWatcher(write)
    try:
        order = decode(FileOrder, data, where="the order", limit_bytes=MAX_ORDER_BYTES)
        digests = read_files(order, cache=Cache(), watcher=watcher).digests
    except ShardhubError as error:
        watcher.report(ReadReport(failure=Failure.of(error)))
        return 1
    watcher.report(ReadReport(digests=digests))
    return 0
