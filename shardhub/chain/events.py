"""Events of a chain, in sentences for people."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shardhub.clock import SYSTEM_CLOCK, Clock

log = logging.getLogger(__name__)

_MAX_EVENTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event of the chain, in a sentence for people.

    Attributes:
        kind: `lost`, `back`, `joined`, `refused`, `recovered`, `slept` or `gave-up`.
        text: What happened, in a sentence.
        at: Unix time in seconds.
    """

    kind: str
    text: str
    at: float


class Events:
    """The most recent events, the latest last."""

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)
        self._observers: tuple[Callable[[Event], None], ...] = ()

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def watch(self, observer: Callable[[Event], None]) -> None:
        """Tell an observer of every event from now on."""
        self._observers = (*self._observers, observer)

    def tell(self, kind: str, text: str) -> None:
        """Record an event and tell the observers."""
        event = Event(kind=kind, text=text, at=self._clock.date())
        log.info("%s", text)  # info only: code that shows events to people uses `watch`
        self._events.append(event)
        for observer in self._observers:
            observer(event)
