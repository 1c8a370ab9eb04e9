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
