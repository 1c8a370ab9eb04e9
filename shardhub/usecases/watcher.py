"""The watcher, to which a use case reports its work and asks questions. Without one it is silent and asks none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Progress of an activity.

    Attributes:
        activity: `copying`, `fetching`, `checking`, `reading`, `uploading`, `comparing` or `prefill`.
        item: Object of the activity: a file, a tensor, a repo and a file; may be empty.
        done, total: Amounts in `unit`; skipped work counts as done.
    """

    activity: str
    item: str
    done: int
    total: int
    unit: Literal["bytes", "tokens"] = "bytes"

    @property
    def share(self) -> float:
        """Share done, from 0 to 1."""
        return self.done / max(1, self.total)

    @property
    def is_finished(self) -> bool:
        return self.done >= self.total


class Watcher(Protocol):
    """Receives a use case's reports, and answers its questions. May be called from several threads."""

    def note(self, text: str) -> None:
        """Show a line of text; one that begins with `warning:` needs a person's attention."""

    def doing(self, activity: str) -> None:
        """Show the current activity; the part after a colon changes quickly. An empty text means that it is over."""

    def progress(self, state: Progress) -> None:
        """Show progress; called a few times a second."""

    def ask(self, question: str) -> bool | None:
        """Ask a question; None if it cannot be answered, which the use case takes as a no or an error."""


class Silent:
    """A watcher that ignores reports and answers no question."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def doing(self, activity: str) -> None:
        """Do nothing."""

    def progress(self, state: Progress) -> None:
        """Do nothing."""

    def ask(self, question: str) -> bool | None:
        """Return None: the question cannot be answered."""
        return None


SILENT: Watcher = Silent()

_WARNING = "warning: "


class About:
    """Passes reports on to a watcher, each line with the name of what it is about.

    Args:
        watcher: Receives the reports.
        name: What they are about.
    """

    def __init__(self, watcher: Watcher, name: str) -> None:
        self._watcher = watcher
        self._name = name

    def note(self, text: str) -> None:
        """Show a line of text; a warning goes on beginning with `warning:`."""
        is_warning = text.startswith(_WARNING)
        self._watcher.note(f"{_WARNING if is_warning else ''}{self._name}: {text.removeprefix(_WARNING)}")

    def doing(self, activity: str) -> None:
        """Show the current activity."""
        self._watcher.doing(activity)

    def progress(self, state: Progress) -> None:
        """Show progress."""
        self._watcher.progress(state)

    def ask(self, question: str) -> bool | None:
        """Ask a question about it."""
        return self._watcher.ask(f"{self._name}: {question}")
