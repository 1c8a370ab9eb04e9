"""Progress of the layers below, each in its own words, as a watcher is told it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from shardhub.usecases.watcher import Progress, Watcher


class BytesState(Protocol):
    """How far something is, in bytes."""

    @property
    def file(self) -> str: ...
    @property
    def done_bytes(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...


def bytes_of(activity: str, watcher: Watcher) -> Callable[[BytesState], None]:
    """Forwards states in bytes."""

    def forward(state: BytesState) -> None:
        watcher.progress(
            Progress(activity=activity, item=state.file, done=state.done_bytes, total=state.total_bytes, unit="bytes")
        )

    return forward


def prompt_of(watcher: Watcher) -> Callable[[int, int], None]:
    """Forwards prompt ids that are done, and all of them."""

    def forward(done: int, total: int) -> None:
        watcher.progress(Progress(activity="prefill", item="prompt", done=done, total=total, unit="tokens"))

    return forward
