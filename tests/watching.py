"""A watcher that records reports and gives prepared answers."""

from __future__ import annotations

from shardhub.usecases.watcher import Progress


class Listener:
    """Records notes, activities, progress and questions.

    Args:
        answer: To every question; None is nobody.
    """

    def __init__(self, answer: bool | None = None) -> None:
        self.notes: list[str] = []
        self.activities: list[str] = []
        self.states: list[Progress] = []
        self.questions: list[str] = []
        self._answer = answer

    def note(self, text: str) -> None:
        self.notes.append(text)

    def doing(self, activity: str) -> None:
        self.activities.append(activity)

    def progress(self, state: Progress) -> None:
        self.states.append(state)

    def ask(self, question: str) -> bool | None:
        self.questions.append(question)
        return self._answer
