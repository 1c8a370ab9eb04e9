"""The record that this process keeps for the resident that started it, if one did."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardhub.errors import ShardhubError
from shardhub.resident.records import (
    RECORD_VARIABLE,
    Failure,
    NodeRecord,
    NodeState,
    held,
    own_record,
    write_record,
)
from shardhub.usecases.watcher import Progress, Watcher

# Shortest time between two records of one activity.
_REFRESH_S = 0.25


class RecordingWatcher:
    """A watcher that keeps a record of what it is told, and passes it on.

    Args:
        path: Where the record is kept.
        watcher: Told the same.
    """

    def __init__(self, path: Path, watcher: Watcher) -> None:
        self._path = path
        self._watcher = watcher
        self._lock = threading.Lock()
        self._written_at = float("-inf")
        self._record = own_record()
        write_record(path, self._record)

    def note(self, text: str) -> None:
        """Pass it on."""
        self._watcher.note(text)

    def doing(self, activity: str) -> None:
        """Record the activity."""
        self._watcher.doing(activity)
        is_new = activity.partition(":")[0] != self._record.doing.partition(":")[0]
        self._keep(doing=activity[:500], done_bytes=0, total_bytes=0, at_once=is_new)

    def progress(self, state: Progress) -> None:
        """Record the progress."""
        self._watcher.progress(state)
        if state.unit == "bytes":
            doing = f"{state.activity} {state.item}"[:500]
            self._keep(doing=doing, done_bytes=state.done, total_bytes=state.total, at_once=state.is_finished)

    def ask(self, question: str) -> bool | None:
        """Nobody is there to answer."""
        return None

    def ready(self, address: str) -> None:
        """Record that the node answers."""
        self._keep(state=NodeState.READY, address=address, doing="", done_bytes=0, total_bytes=0, at_once=True)

    def failed(self, error: ShardhubError) -> None:
        """Record what the process ends with."""
        self._keep(state=NodeState.FAILED, failure=Failure.of(error), at_once=True)

    def _keep(self, *, at_once: bool, **changes: object) -> None:
        with self._lock:
            self._record = NodeRecord.model_validate({**dict(self._record), **changes})
            if at_once or time.monotonic() - self._written_at >= _REFRESH_S:
                self._written_at = time.monotonic()
                write_record(self._path, self._record)


@contextmanager
def recorded(watcher: Watcher) -> Iterator[tuple[Watcher, RecordingWatcher | None]]:
    """Keep a record while the block runs, if a resident started this process; yields the watcher to use, and it.

    Raises:
        Conflict: Another process serves the same for the resident.
    """
    path = os.environ.pop(RECORD_VARIABLE, None)
    if path is None:
        yield watcher, None
        return
    with held(Path(path)):
        record = RecordingWatcher(Path(path), watcher)
        try:
            yield record, record
        except ShardhubError as error:
            record.failed(error)
            raise
