"""What each step of a head took: its round trip, and the time it spent in the stages."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from shardhub.chain.head import Head
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


class Rounds:
    """Notes the steps of a head from now on.

    Attributes:
        found: In the order in which they came round.
    """

    def __init__(self, head: Head) -> None:
        self.found: list[Round] = []
        self._times: deque[tuple[int, tuple[StageTime, ...]]] = deque()
        self._before = head.chain.on_times
        head.chain.on_times = self._note_times
        head.chain.on_round = self._note_round

    def _note_times(self, lane: Lane, num_ids: int, times: tuple[StageTime, ...]) -> None:
        self._times.append((num_ids, times))
        self._before(lane, num_ids, times)

    def _note_round(self, lane: Lane, num_rows: int, trip_s: float) -> None:
        num_ids, times = self._times.popleft()
        self.found.append(
            Round(
                ended=time.perf_counter(),
                lane=lane,
                num_ids=num_ids,
                trip_s=trip_s,
                compute_s=sum(stage.compute_s for stage in times),
                wait_s=sum(stage.wait_s for stage in times),
            )
        )

    def decode(self, start: float = 0.0, stop: float = float("inf")) -> list[Round]:
        """Decode steps that ended within a time."""
        return [one for one in self.found if one.lane is Lane.DECODE and start <= one.ended <= stop]
