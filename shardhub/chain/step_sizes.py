"""Size in bytes of a step's message on each link, known before it is sent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from shardhub.chain.place import Place
from shardhub.limits import MESSAGE_OVERHEAD_BYTES
from shardhub.tensors import DTYPE_SIZES


class _Size(NamedTuple):
    """Bytes of a step's largest message, and whether each of its messages fits its link."""

    largest: int
    fits: bool


class StepSizes:
    """Sizes of the messages into each place.

    Args:
        places: The chain's places, including those added later.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._known: dict[tuple[int, int], _Size] = {}
        self._grows = any(crossing.grows for place in places for crossing in place.link.facts.crossings_in)

    @property
    def id_bytes(self) -> int:
        """Bytes per prompt id on the link that carries most."""
        return self.largest(1, 1, 1)

    def largest(self, batch: int, length: int, total: int) -> int:
        """Bytes of the largest message of a step of `batch` rows and `length` ids, with `total` positions in all."""
        return self._of(batch, length, total).largest

    def fit(self, num_rows: int, context: int) -> bool:
        """Whether decode steps of `num_rows` sessions of at most `context` positions fit into messages."""
        return num_rows == 1 or self._of(num_rows, 1, context).fits

    def changed(self) -> None:
        """Forget what is known, as a place was added or a link was replaced."""
        self._known.clear()

    def _of(self, batch: int, length: int, total: int) -> _Size:
        # If a tensor grows with the context, every context has its own sizes, and a cache would not help.
        if self._grows:
            return self._measure(batch, length, total)
        size = self._known.get((batch, length))
        if size is None:
            size = self._known[batch, length] = self._measure(batch, length, total)
        return size

    def _measure(self, batch: int, length: int, total: int) -> _Size:
        sizes = [
            4 * batch * length
            + sum(
                DTYPE_SIZES[c.dtype] * math.prod(c.expected_shape(batch=batch, length=length, total=total))
                for c in place.link.facts.crossings_in
            )
            for place in self._places
        ]
        fits = all(
            size + MESSAGE_OVERHEAD_BYTES <= place.link.limits.message_bytes
            for place, size in zip(self._places, sizes, strict=True)
        )
        return _Size(max(sizes), fits)
