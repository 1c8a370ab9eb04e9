"""What a use case tells while it works, and what it asks. Without a watcher it is silent, and asks nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far something is.

    Attributes:
        activity: What is done: `copying`, `fetching`, `checking`, `reading`, `uploading`, `comparing` or `prefill`.
        item: To what: a file, a tensor, a repo and a file; may be empty.
        done, total: In `unit`; what needs not be done counts as done.
    """

    activity: str
    item: str
    done: int
    total: int
    unit: Literal["bytes", "tokens"] = "bytes"

    @property
    def share(self) -> float:
        """Share that is done, from 0 to 1."""
        return self.done / max(1, self.total)

    @property
    def is_finished(self) -> bool:
        return self.done >= self.total


class Watcher(Protocol):
    """Told what a use case does, and asked where it cannot decide. May be called from several threads."""

    def note(self, text: str) -> None:
        """A line worth reading; one that begins with `warning:` should be seen by somebody."""

    def doing(self, activity: str) -> None:
        """What is being done now; what follows a colon changes quickly. An empty text: it is over."""

    def progress(self, state: Progress) -> None:
        """How far it is, a few times a second."""

    def ask(self, question: str) -> bool | None:
        """The answer to a question; None where nobody can be asked, which then is an error or a no."""


class Silent:
    """Tells nobody, and asks nobody."""

    def note(self, text: str) -> None:
        """Nothing."""

    def doing(self, activity: str) -> None:
        """Nothing."""

    def progress(self, state: Progress) -> None:
        """Nothing."""

    def ask(self, question: str) -> bool | None:
        """Nobody can be asked."""
        return None


SILENT: Watcher = Silent()
