"""What each step of a head took: its round trip, and the time it spent in the stages."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from shardhub.chain.head import Head
from shardhub.chain.observers import ChainObserver
from shardhub.protocol import Lane, StageTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One step, in seconds.

    Attributes:
        ended: When, on this process's clock.
        num_ids: Ids of all its rows.
        trip_s: From sending it until its result was read.
        compute_s, wait_s: Sums over the stages: computing, and in their queues.
    """

    ended: float
    lane: Lane
    num_ids: int
    trip_s: float
    compute_s: float
    wait_s: float

    @property
    def hops_s(self) -> float:
        """What the way through the chain took beside computing."""
        return self.trip_s - self.compute_s


class Rounds(ChainObserver):
    """Notes the steps of a head from now on.

    Attributes:
        rounds: In the order in which they came round.
    """

    def __init__(self, head: Head) -> None:
        self.rounds: list[Round] = []
        self._times: deque[tuple[int, tuple[StageTime, ...]]] = deque()
        head.chain.watch(self)

    def took(self, lane: Lane, num_ids: int, times: tuple[StageTime, ...]) -> None:
        """Note what a step took on each stage."""
        self._times.append((num_ids, times))

    def went_round(self, lane: Lane, num_rows: int, seconds: float) -> None:
        """Note what it took in all."""
        num_ids, times = self._times.popleft()
        self.rounds.append(
            Round(
                ended=time.perf_counter(),
                lane=lane,
                num_ids=num_ids,
                trip_s=seconds,
                compute_s=sum(stage.compute_s for stage in times),
                wait_s=sum(stage.wait_s for stage in times),
            )
        )

    def decode(self, start: float = 0.0, stop: float = float("inf")) -> list[Round]:
        """Decode steps that ended within a time."""
        return [one for one in self.rounds if one.lane is Lane.DECODE and start <= one.ended <= stop]
