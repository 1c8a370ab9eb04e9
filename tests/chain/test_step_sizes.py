"""Sizes of steps on the links of a chain."""

from __future__ import annotations

from types import SimpleNamespace

from shardhub.chain.step_sizes import StepSizes
from shardhub.limits import MESSAGE_OVERHEAD_BYTES
from shardhub.manifest import Crossing

# Bytes of one id and of its hidden states.
ROW_BYTES = 4 + 4 * 8


class Link:
    """A link that counts how often its limits are asked for."""

    def __init__(self, num_rows: int) -> None:
        self.num_asked = 0
        self.facts = SimpleNamespace(crossings_in=(Crossing(name="layer.0", dtype="F32", shape=("B", "L", 8)),))
        self._limits = SimpleNamespace(message_bytes=MESSAGE_OVERHEAD_BYTES + num_rows * ROW_BYTES)

    @property
    def limits(self):
        self.num_asked += 1
        return self._limits


def test_a_size_is_computed_once_until_a_link_changes() -> None:
    links = [Link(4), Link(4)]
    places = [SimpleNamespace(link=link) for link in links]
    sizes = StepSizes(places)
    for _ in range(100):
        assert sizes.fit(4, 100)
        assert not sizes.fit(5, 100)
        assert sizes.largest(4, 1, 100) == 4 * ROW_BYTES
    assert links[0].num_asked == 2
    places[1].link = Link(3)
    sizes.changed()
    assert not sizes.fit(4, 100)
    assert sizes.fit(3, 100)
    places.append(SimpleNamespace(link=Link(2)))
    sizes.changed()
    assert not sizes.fit(3, 100)
    assert sizes.fit(1, 100)
