"""Masks for draws, and the steps that wait for them: the head sends a mask while its step is in the earlier stages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from shardhub.errors import ShardhubError, StepTimeout
from shardhub.protocol import Mask, Row, Step

_Key = tuple[bytes, bytes, int, int]


@dataclass(slots=True, eq=False)
class _Held:
    step: Step
    missing: set[_Key]
    ready: Callable[[ShardhubError | None], None]


class MaskTable:
    """Matches masks with steps, whichever comes first. Thread-safe.

    Args:
        most: Most masks kept; beyond that the oldest is dropped, as its step is no longer expected.
        clock: Monotonic seconds.
    """

    def __init__(self, *, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._masks: dict[_Key, bytes] = {}
        self._held: list[_Held] = []

    def put(self, head: bytes, masks: Iterable[Mask]) -> None:
        """Store masks; steps that now have all of theirs become ready."""
        ready: list[_Held] = []
        with self._lock:
            for mask in masks:
                key = (head, mask.session, mask.epoch, mask.position)
                while len(self._masks) >= self._most:
                    del self._masks[next(iter(self._masks))]
                self._masks[key] = mask.allowed
                for held in self._held:
                    held.missing.discard(key)
            ready = [held for held in self._held if not held.missing]
            self._held = [held for held in self._held if held.missing]
        for held in ready:
            held.ready(None)

    def hold(self, head: bytes, step: Step, ready: Callable[[ShardhubError | None], None]) -> None:
        """Call `ready` once all masks of a step have arrived, or with an error after its deadline."""
        keys = {_key(head, row, step.length) for row in step.rows if row.masked}
        with self._lock:
            missing = keys - self._masks.keys()
            if missing:
                self._held.append(_Held(step, missing, ready))
        if not missing:
            ready(None)

    def take(self, head: bytes, step: Step) -> list[bytes | None]:
        """The masks of a step's rows; None for rows without one.

        Raises:
            StepTimeout: A mask was dropped because too many others arrived.
        """
        masks: list[bytes | None] = []
        with self._lock:
            for row in step.rows:
                mask = self._masks.pop(_key(head, row, step.length), None) if row.masked else None
                if row.masked and mask is None:
                    raise StepTimeout(
                        "The mask of a step was dropped.", why="Its head sent too many other masks after it."
                    )
                masks.append(mask)
        return masks

    def expire(self, sessions: Container[bytes]) -> None:
        """Fail steps whose deadline has passed or whose sessions have ended, and drop the masks of such sessions.

        Args:
            sessions: Ids of those that have not.
        """
        now = self._clock()
        with self._lock:
            for key in [key for key in self._masks if key[1] not in sessions]:
                del self._masks[key]
            late = [held for held in self._held if held.step.deadline < now or not _has_all(sessions, held.step)]
            self._held = [held for held in self._held if held not in late]
        for held in late:
            held.ready(StepTimeout("The mask of a step did not arrive in time.", why="The head did not send it."))


def _has_all(sessions: Container[bytes], step: Step) -> bool:
    return all(row.session in sessions for row in step.rows)


def _key(head: bytes, row: Row, length: int) -> _Key:
    return (head, row.session, row.epoch, row.position + length)
