"""Size in bytes of a step's message on each link, known before it is sent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shardhub.chain.place import Place
from shardhub.limits import MESSAGE_OVERHEAD_BYTES
from shardhub.tensors import DTYPE_SIZES


class StepSizes:
    """Sizes of the messages into each place.

    Args:
        places: The chain's places, including those added later.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._known: dict[tuple[int, int], list[int]] = {}
        self._grows = any(crossing.grows for place in places for crossing in place.link.facts.crossings_in)

    @property
    def id_bytes(self) -> int:
        """Bytes per prompt id on the link that carries most."""
        return self.largest(1, 1, 1)

    def largest(self, batch: int, length: int, total: int) -> int:
        """Bytes of the largest message of a step of `batch` rows and `length` ids, with `total` positions in all."""
        return max(self._into_places(batch, length, total))

    def fit(self, num_rows: int, context: int) -> bool:
        """Whether decode steps of `num_rows` sessions of at most `context` positions fit into messages."""
        return num_rows == 1 or all(
            size + MESSAGE_OVERHEAD_BYTES <= place.link.limits.message_bytes
            for place, size in zip(self._places, self._into_places(num_rows, 1, context), strict=True)
        )

    def _into_places(self, batch: int, length: int, total: int) -> list[int]:
        shape = batch, length
        sizes = self._known.get(shape, [])
        # If a tensor grows with the context, every context has its own sizes, and a cache would not help.
        if self._grows or len(sizes) < len(self._places):
            sizes = self._known[shape] = [
                4 * batch * length
                + sum(
                    DTYPE_SIZES[c.dtype] * math.prod(c.expected_shape(batch=batch, length=length, total=total))
                    for c in place.link.facts.crossings_in
                )
                for place in self._places
            ]
        return sizes
