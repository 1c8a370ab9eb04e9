"""How far a copy is: one line that moves on a terminal, one line for each tenth into a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol

from shardhub.cli.run import note

# Progress lines into a pipe: one each time this share of the bytes is done.
_REPORT_SHARE = 0.1
_REPORT_S = 0.2


class Progress(Protocol):
    """How far something is, in bytes."""

    @property
    def file(self) -> str: ...
    @property
    def done_bytes(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...


def bytes_progress() -> Callable[[Progress], None]:
    """A function that shows progress on stderr."""
    is_terminal = sys.stderr.isatty()
    start = time.monotonic()
    shown_at = 0.0
    shown_share = 0.0

    def show(state: Progress) -> None:
        nonlocal shown_at, shown_share
        now = time.monotonic()
        share = state.done_bytes / max(1, state.total_bytes)
        is_end = state.done_bytes >= state.total_bytes
        if is_terminal and (now - shown_at >= _REPORT_S or is_end):
            rate = state.done_bytes / max(1e-9, now - start)
            left_s = (state.total_bytes - state.done_bytes) / max(1.0, rate)
            sys.stderr.write(f"\r{share:6.1%}  {rate / 1e6:7.0f} MB/s  {left_s:5.0f} s left  {state.file:<40.40}")
            sys.stderr.write("\n" if is_end else "")
            sys.stderr.flush()
            shown_at = now
        elif not is_terminal and share - shown_share >= _REPORT_SHARE:
            note(f"{share:.0%} of {state.total_bytes / 1e9:.2f} GB")
            shown_share = share

    return show
