"""How far a copy is: one line that moves on a terminal, one line for each tenth into a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol

from shardhub.sizes import size_text
from shardhub.usecases.terminal import note

# Progress lines into a pipe: one each time this share of the bytes is done.
_REPORT_SHARE = 0.1
_REPORT_S = 0.2
# A longer time left is not worth its digits.
_MOST_LEFT_S = 99999.0


class Progress(Protocol):
    """How far something is, in bytes."""

    @property
    def file(self) -> str: ...
    @property
    def done_bytes(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...


def speed_text(done_bytes: int, total_bytes: int, elapsed_s: float) -> str:
    """Rate and time left; blanks of the same width until enough was done to tell.

    Args:
        elapsed_s: In which so much was done.
    """
    if done_bytes <= 0 or elapsed_s < _REPORT_S:
        return " " * len(speed_text(1, 1, _REPORT_S))
    rate = done_bytes / elapsed_s
    left_s = min(_MOST_LEFT_S, (total_bytes - done_bytes) / rate)
    return f"{rate / 1e6:7.0f} MB/s  {left_s:5.0f} s left"


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
            speed = speed_text(state.done_bytes, state.total_bytes, now - start)
            sys.stderr.write(f"\r{share:6.1%}  {speed}  {state.file:<40.40}")
            sys.stderr.write("\n" if is_end else "")
            sys.stderr.flush()
            shown_at = now
        elif not is_terminal and share - shown_share >= _REPORT_SHARE:
            note(f"{share:.0%} of {size_text(state.total_bytes)}")
            shown_share = share

    return show
