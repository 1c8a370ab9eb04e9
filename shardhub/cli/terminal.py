"""The terminal: notes and progress on stderr, pieces of an answer on stdout, and questions."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

from shardhub.cli.setting_names import with_flags
from shardhub.errors import UsageError
from shardhub.sizes import size_text
from shardhub.usecases.watcher import Progress

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

# Shortest time between updates of the status line.
_REFRESH_S = 0.1
# Lines that are written to a pipe until a work is done.
_NUM_REPORTS = 10
# Shortest time over which a rate is meaningful.
_RATE_S = 0.2
# A prompt of fewer ids is done before a line could be read.
_LONG_PROMPT = 256
_BAR_WIDTH = 24
_ITEM_WIDTH = 48
_UPLOADING = "uploading"
_DIM, _PLAIN = "\x1b[2m", "\x1b[22m"
# Lines are written whole: notes come from other threads than the answer.
_lock = threading.RLock()
# Whether the answer on stdout has an unfinished line.
_is_line_open = False
# Shapes a note before it is printed.
_shape: Callable[[str], str] = str
# Whether a person is typing, at a prompt that shows notes above itself.
_is_prompting = False
# The status line, of which a terminal has one.
_line: _Line | None = None


class AnswerWrapper(Protocol):
    """Wraps an answer between words; see `shardhub.cli.chat.wrapping`."""

    def feed(self, text: str) -> str: ...
    def finish(self) -> str: ...
    def begin_line(self) -> None: ...


def note(text: str) -> None:
    """Print a line to stderr: above the status line, and on a line of its own while an answer is being written.

    Settings in the text are shown as options.
    """
    global _is_line_open
    text = _shape(with_flags(text))
    with _lock:
        is_shared = _is_line_open and sys.stdout.isatty() and sys.stderr.isatty()
        if _line is not None:
            _line.clear()
        print(f"\n{text}" if is_shared else text, file=sys.stderr, flush=True)
        _is_line_open = _is_line_open and not is_shared


def write_answer(text: str, wrapper: AnswerWrapper | None = None, *, is_dim: bool = False) -> None:
    """Write a piece of an answer to stdout, and flush it.

    Args:
        text: The piece.
        wrapper: Wraps the answer; a word is then written once it is whole, so that a note never breaks it.
        is_dim: Whether the terminal is to show it dimmed.
    """
    with _lock:
        if wrapper is not None:
            if not _is_line_open:
                wrapper.begin_line()
            text = wrapper.feed(text)
        _write(text, is_dim=is_dim)


def end_answer(wrapper: AnswerWrapper | None = None, *, is_dim: bool = False) -> None:
    """End an answer's last line; arguments as for `write_answer`."""
    global _is_line_open
    with _lock:
        _write(wrapper.finish() if wrapper is not None else "", is_dim=is_dim)
        print(flush=True)
        _is_line_open = False


@contextmanager
def shaped_notes(shape: Callable[[str], str]) -> Iterator[None]:
    """Have notes shaped while the block runs, such as wrapped between words."""
    global _shape
    _shape = shape
    try:
        yield
    finally:
        _shape = str


@contextmanager
def prompting(above: AbstractContextManager[object]) -> Iterator[None]:
    """Say that a person is typing while the block runs: no status line is shown.

    Args:
        above: Has what is printed meanwhile shown above the prompt; entered and left between two notes.
    """
    global _is_prompting
    with _lock:
        above.__enter__()
        _is_prompting = True
    try:
        yield
    finally:
        with _lock:
            _is_prompting = False
            above.__exit__(None, None, None)


def _write(text: str, *, is_dim: bool) -> None:
    global _is_line_open
    if _line is not None:
        _line.clear()
    sys.stdout.write(f"{_DIM}{text}{_PLAIN}" if text and is_dim else text)
    sys.stdout.flush()
    if text:
        _is_line_open = not text.endswith("\n")


def ask(question: str) -> bool | None:
    """Ask on the terminal; any answer but yes counts as no. Returns None without a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    if _line is not None:
        _line.clear()
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def confirm(question: str, refusal: str) -> None:
    """Ask on a terminal; any answer but yes counts as no, and so does a missing terminal.

    Raises:
        UsageError: The answer is no, or there is no terminal.
    """
    answer = ask(question)
    if answer is None:
        raise UsageError(
            refusal, why="This command cannot ask for confirmation without a terminal.", hint="Add --yes to confirm."
        )
    if not answer:
        raise UsageError(refusal, why="The answer was not yes.")


class Terminal:
    """A watcher that shows a use case's reports on stderr, and asks questions on the terminal.

    A terminal shows one status line. A pipe gets a line for each new activity, and for each tenth of the progress in
    bytes.
    """

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._activity = ""
        self._copy = ""
        self._uploaded = ""
        self._began_at = 0.0
        self._began_share = 0.0
        self._shown_share = 0.0
        # What a pipe was told last: the total in bytes, and how many tenths of it.
        self._reported = 0, 0
        self._shown_at = 0.0

    def note(self, text: str) -> None:
        """Print a line to stderr."""
        note(text)

    def doing(self, activity: str) -> None:
        """Show the current activity; an empty text clears the status line."""
        from rich.text import Text

        name = activity.partition(": ")[0]  # a colon in an address has no blank behind it
        with _lock:
            if self._can_draw:
                _shown_line().show(Text(activity, no_wrap=True, overflow="ellipsis")) if activity else _cleared()
            elif name and name != self._activity:
                note(name)
            self._activity = name

    def progress(self, state: Progress) -> None:
        """Show progress."""
        with _lock:
            if state.activity != self._copy or state.share < self._shown_share:
                self._copy, self._began_at, self._began_share = state.activity, time.monotonic(), state.share
                self._shown_share = self._shown_at = 0.0
            if self._can_draw:
                self._draw(state)
            elif not self._is_terminal and state.unit == "bytes":
                self._report(state)

    def ask(self, question: str) -> bool | None:
        """Ask on the terminal; None without one."""
        return ask(question)

    @property
    def _can_draw(self) -> bool:
        """Whether a status line has a place: not in an answer's line, nor where a person types."""
        return self._is_terminal and not (_is_line_open or _is_prompting)

    def _report(self, state: Progress) -> None:
        """Write a line for each tenth of a total, whatever activities take turns on the parts of it."""
        total, tenths = self._reported
        reached = min(_NUM_REPORTS, state.done * _NUM_REPORTS // max(1, state.total))
        if total != state.total or reached == 0:  # another one begins
            tenths = 0
        if reached > tenths:
            note(f"{state.activity}: {state.share:.0%} of {size_text(state.total)}")
        self._reported = state.total, max(tenths, reached)

    def _draw(self, state: Progress) -> None:
        if state.unit == "tokens" and state.total <= _LONG_PROMPT:
            return
        now = time.monotonic()
        if state.activity == _UPLOADING and not state.is_finished:  # the Hub's client draws a bar below this line
            if state.item != self._uploaded:
                note(f"{state.share:6.1%}  {state.activity} {state.item}")
            self._uploaded = state.item
        elif state.is_finished:
            _cleared()
        elif now - self._shown_at >= _REFRESH_S:
            _shown_line().show(progress_line(state, now - self._began_at, self._began_share))
            self._shown_at = now
        self._shown_share = state.share


def progress_line(state: Progress, elapsed_s: float, began_share: float = 0.0) -> RenderableType:
    """A progress bar, with rate and remaining time once enough is done to estimate them.

    Args:
        elapsed_s: Seconds since `began_share` was done.
    """
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    cells = [f"{state.share:6.1%}"]
    share = state.share - began_share
    if share > 0 and elapsed_s >= _RATE_S:
        rate, left_s = share * state.total / elapsed_s, (1 - state.share) / share * elapsed_s
        cells.append(f"{rate / 1e6:.0f} MB/s" if state.unit == "bytes" else f"{rate:.0f} tokens/s")
        cells.append(f"{left_s:.0f} s left" if left_s < 600 else f"{left_s / 60:.0f} min left")
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        state.activity,
        ProgressBar(total=max(1, state.total), completed=state.done, width=_BAR_WIDTH),
        *cells,
        state.item[-_ITEM_WIDTH:],
    )
    return grid


class _Line:
    """The status line, the last line of a terminal; not shown elsewhere."""

    def __init__(self) -> None:
        self._live: Live | None = None

    def show(self, content: RenderableType) -> None:
        """Replace the content of the line."""
        from rich.console import Console
        from rich.live import Live

        if self._live is None:
            console = Console(file=sys.stderr, highlight=False)
            self._live = Live(
                console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
            console.show_cursor(True)  # so that an abrupt end of the process leaves it visible
        self._live.update(content, refresh=True)

    def clear(self) -> None:
        """Clear the line for other output."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def show_status(content: RenderableType) -> None:
    """Show something in place of the status line, on a terminal."""
    with _lock:
        _shown_line().show(content)


def clear_status() -> None:
    """Clear the status line."""
    with _lock:
        _cleared()


def _shown_line() -> _Line:
    global _line
    if _line is None:
        _line = _Line()
    return _line


def _cleared() -> None:
    if _line is not None:
        _line.clear()
