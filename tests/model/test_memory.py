"""The memory that a stage may use."""

from __future__ import annotations

from shardhub.model.memory import left_for_stage


def test_node_keeps_room_beside_its_stage() -> None:
    """Within a limit, weights and KV leave room for the node itself; without a limit nothing is reserved."""
    assert left_for_stage(None) is None
    assert left_for_stage(1 << 20) == 0
    assert 0 < (1 << 30) - left_for_stage(1 << 30) < 256 << 20
