"""Pacing: the size of a prompt's next chunk, as large as its limits of time and bytes allow.

Its time is estimated from earlier chunks and steps, and from the measured speed of the hops between nodes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from statistics import fmean

from shardhub.chain.observers import ChainObserver
from shardhub.protocol import Lane, StageTime

# Size of a chunk before anything was measured.
_FIRST_CHUNK = 64
_LEAST_CHUNK = 8
# A chunk's time on the slowest stage when no stream waits for a decode step.
_ALONE_S = 1.0
# The same when a stream does wait, in decode steps: how long a prompt delays a stream.
_STEPS_HELD_UP = 1.5
_LEAST_S = 0.02
# Fewest chunks of a prompt for each stage after the first: such a stage is idle until the first chunk arrives.
_CHUNKS_A_STAGE = 8
# Most bytes of a chunk on a link, however fast it is: both ends hold them in memory.
_MOST_BYTES = 32 << 20
# Weight of the newest decode step.
_NEWEST = 0.3
# Number of recent chunks the estimate uses.
_REMEMBERED = 16


class Pace(ChainObserver):
    """Measures steps and sizes chunks.

    A chunk of n ids takes a + b n seconds: reading a stage's weights, and computing with each id.

    Args:
        num_stages: Stages of the chain.
        max_chunk: Most ids of a chunk.
        id_bytes: Bytes per id on the link that carries most.
        bytes_per_s: Measured rate of the slowest link between two nodes; infinite if none was measured.
        fixed: Size of every chunk, whatever is measured; None sizes chunks by time and bytes.
    """

    def __init__(
        self,
        *,
        num_stages: int,
        max_chunk: int,
        id_bytes: int = 0,
        bytes_per_s: Callable[[], float] = lambda: math.inf,
        fixed: int | None = None,
    ) -> None:
        self._num_stages = num_stages
        self._max_chunk = max_chunk
        self._id_bytes = max(1, id_bytes)
        self._bytes_per_s = bytes_per_s
        self._fixed = fixed
        self._chunks: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)
        self._step_s: float | None = None

    @property
    def step_s(self) -> float | None:
        """Seconds of a decode step on the slowest stage."""
        return self._step_s

    def took(self, lane: Lane, num_ids: int, times: tuple[StageTime, ...]) -> None:
        """Record the times of a step of `num_ids` ids in all."""
        if not times or not num_ids:
            return
        slowest = max(time.compute_s for time in times)
        if lane is Lane.DECODE:
            self._step_s = slowest if self._step_s is None else (1 - _NEWEST) * self._step_s + _NEWEST * slowest
        else:
            self._chunks.append((num_ids, slowest))

    def chunk(self, num_left: int, num_prompt: int, *, others: bool) -> int:
        """Number of ids of the next chunk.

        Args:
            num_left: Ids of the prompt not yet sent.
            num_prompt: Ids of the prompt.
            others: Whether any stream waits for decode steps.
        """
        if self._fixed is not None:
            return min(self._fixed, self._max_chunk, num_left)
        size = float(_FIRST_CHUNK)
        allowed_s = _ALONE_S
        if others and self._step_s is not None:
            allowed_s = min(_ALONE_S, max(_LEAST_S, _STEPS_HELD_UP * self._step_s))
        if any(length > 1 for length, _ in self._chunks):
            start_s, id_s = self._line()
            # At least as much time for its ids as for reading the weights, or the prompt would hardly advance.
            size = max(allowed_s - start_s, start_s) / id_s
        size = min(size, _MOST_BYTES / self._id_bytes, allowed_s * self._bytes_per_s() / self._id_bytes)
        if self._num_stages > 1:
            size = min(size, max(_FIRST_CHUNK, math.ceil(num_prompt / (_CHUNKS_A_STAGE * (self._num_stages - 1)))))
        return min(max(_LEAST_CHUNK, int(size)), self._max_chunk, num_left)

    def _line(self) -> tuple[float, float]:
        """Fit a and b to the recent chunks; a is 0 if they do not determine it."""
        lengths, seconds = zip(*self._chunks, strict=True)
        mean_length, mean_s = fmean(lengths), fmean(seconds)
        spread = sum((length - mean_length) ** 2 for length in lengths)
        if spread:
            pairs = zip(lengths, seconds, strict=True)
            slope = sum((length - mean_length) * (taken - mean_s) for length, taken in pairs) / spread
            start = mean_s - slope * mean_length
            if slope > 0 and start > 0:
                return start, slope
        return 0.0, mean_s / mean_length
