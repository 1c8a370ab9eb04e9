"""Limits on Metal's memory, decided for real Macs and set in MLX."""

from __future__ import annotations

import mlx.core as mx
import pytest

from shardhub.model.memory import HEADROOM
from shardhub.model.metal import MetalLimits, apply, metal_limits
from shardhub.planning.machine import Machine

GIB = 1 << 30
# Installed memory, and the working set that Metal recommends there, in bytes: as logs of such Macs show, and three
# quarters of the largest.
MACS = {
    "M1, 8 GB": (8 * GIB, 5_726_623_061),
    "M1 Pro, 16 GB": (16 * GIB, 11_453_250_000),
    "M4, 16 GB, macOS 26": (16 * GIB, 12_713_120_000),
    "M2, 24 GB": (24 * GIB, 17_179_890_000),
    "M2 Max, 32 GB": (32 * GIB, 22_906_503_000),
    "M2 Max, 96 GB": (96 * GIB, 72 * GIB),
    "M5 Max, 128 GB, macOS 26": (128 * GIB, 115_448_730_000),
    "M2 Ultra, 192 GB": (192 * GIB, 144 * GIB),
    "M3 Ultra, 512 GB": (512 * GIB, 384 * GIB),
}


@pytest.mark.parametrize(("installed", "working_set"), MACS.values(), ids=MACS)
def test_node_on_a_mac_stays_within_its_budget(installed: int, working_set: int) -> None:
    """Weights, KV cache and freed buffers together never exceed the budget, and no more is wired than Metal allows."""
    for budget in (working_set, working_set // 2, installed):
        limits = metal_limits(budget, working_set)
        assert limits.wired_bytes == min(budget, working_set)
        assert budget * (1 - HEADROOM) + limits.cache_bytes <= budget
        assert limits.wired_bytes < installed


@pytest.mark.parametrize(("installed", "working_set"), MACS.values(), ids=MACS)
def test_planned_budget_is_one_that_a_mac_has(installed: int, working_set: int) -> None:
    """A plan gives a Mac at most what Metal recommends there less the headroom, and at least four fifths of that."""
    planned = Machine(name="mac", ram_bytes=installed).working_set_bytes
    assert 0.8 * working_set * (1 - HEADROOM) <= planned <= working_set * (1 - HEADROOM)


def test_limits_are_set_in_mlx() -> None:
    """MLX takes the limits; a smaller wired limit never replaces that of another stage in the process."""
    cache_before = mx.set_cache_limit(1 << 20)
    try:
        apply(MetalLimits(wired_bytes=1 << 20, cache_bytes=3 << 20))
        assert mx.set_cache_limit(1 << 20) == 3 << 20
    finally:
        mx.set_cache_limit(cache_before)
        mx.set_wired_limit(0)
