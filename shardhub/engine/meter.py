"""Counters of a stage, which only rise."""

from __future__ import annotations

import threading
from typing import Protocol

from shardhub.errors import ShardhubError
from shardhub.protocol import Lane, StageTime, Step

_COUNTED = ("steps", "rows", "ids", "bytes", "compute_s", "wait_s", "sent_bytes", "send_s")


class Observer(Protocol):
    """Observes everything that is counted, in the thread that counts it."""

    def ran(self, step: Step, spent: StageTime) -> None:
        """A step ran."""

    def sent(self, lane: Lane, size_bytes: int, send_s: float) -> None:
        """A step's output was written to the next stage or the head."""

    def failed(self, error: ShardhubError) -> None:
        """A step or call was refused or failed."""


class Meter:
    """Counts steps, rows, ids, bytes and seconds. The compute thread and the event loop write, any thread reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._observers: tuple[Observer, ...] = ()
        self._figures: dict[str, float] = {f"{lane.value}_{what}": 0.0 for lane in Lane for what in _COUNTED}
        self._figures["failures"] = 0.0

    def watch(self, observer: Observer) -> None:
        """Tell an observer of everything from now on."""
        self._observers = (*self._observers, observer)

    def ran(self, step: Step, spent: StageTime) -> None:
        """Count a step that ran."""
        self._add(
            step.lane,
            steps=1,
            rows=len(step.rows),
            ids=len(step.rows) * step.length,
            bytes=step.size_bytes,
            compute_s=spent.compute_s,
            wait_s=spent.wait_s,
        )
        for observer in self._observers:
            observer.ran(step, spent)

    def sent(self, lane: Lane, size_bytes: int, send_s: float) -> None:
        """Count a message written to the next stage or the head.

        Args:
            size_bytes: Bytes of ids and tensors; 0 for results.
            send_s: Seconds from queueing it for the stream until the stream had taken it.
        """
        self._add(lane, sent_bytes=size_bytes, send_s=send_s)
        for observer in self._observers:
            observer.sent(lane, size_bytes, send_s)

    def failed(self, error: ShardhubError) -> None:
        """Count a step or call that was refused or failed."""
        with self._lock:
            self._figures["failures"] += 1
        for observer in self._observers:
            observer.failed(error)

    def figures(self) -> dict[str, float]:
        """All counters: `prefill_steps`, `decode_compute_s`, `failures` and so on."""
        with self._lock:
            return dict(self._figures)

    def _add(self, lane: Lane, **counts: float) -> None:
        with self._lock:
            for what, count in counts.items():
                self._figures[f"{lane.value}_{what}"] += count
