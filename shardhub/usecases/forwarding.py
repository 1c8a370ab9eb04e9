"""Adapters from the progress of lower layers to a watcher's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from shardhub.hub.snapshot import FetchProgress
from shardhub.usecases.watcher import Progress, Watcher


class BytesState(Protocol):
    """Progress in bytes."""

    @property
    def file(self) -> str: ...
    @property
    def done_bytes(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...


def bytes_of(activity: str, watcher: Watcher) -> Callable[[BytesState], None]:
    """Make a callback that forwards progress in bytes."""

    def forward(state: BytesState) -> None:
        watcher.progress(
            Progress(activity=activity, item=state.file, done=state.done_bytes, total=state.total_bytes, unit="bytes")
        )

    return forward


def fetch_of(watcher: Watcher) -> Callable[[FetchProgress], None]:
    """Make a callback that forwards a fetch's progress, and says where a file comes from unless that is its repo."""

    def forward(state: FetchProgress) -> None:
        item = state.file if state.place == state.repo else f"{state.file} from {state.place}"
        watcher.progress(
            Progress(activity="fetching", item=item, done=state.done_bytes, total=state.total_bytes, unit="bytes")
        )

    return forward


def prompt_of(watcher: Watcher) -> Callable[[int, int], None]:
    """Make a callback that forwards the number of prompt ids done and the total."""

    def forward(done: int, total: int) -> None:
        watcher.progress(Progress(activity="prefill", item="prompt", done=done, total=total, unit="tokens"))

    return forward
