"""Limits on Metal's memory: which part of it stays resident, and how much freed memory MLX may keep."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from shardhub.model.memory import HEADROOM


@dataclass(frozen=True, slots=True, kw_only=True)
class MetalLimits:
    """Limits of a process that runs a stage.

    Attributes:
        wired_bytes: Memory that macOS must not page out or compress, for weights and KV cache.
        cache_bytes: Freed buffers that MLX may keep for the next allocation.
    """

    wired_bytes: int
    cache_bytes: int


def metal_limits(budget_bytes: int, working_set_bytes: int) -> MetalLimits:
    """Decide the limits from a node's budget.

    Weights and KV cache take at most the budget less its headroom, so that with a cache of that headroom the process
    stays within its budget.

    Args:
        budget_bytes: Memory the node is to stay within.
        working_set_bytes: What Metal recommends; to wire more is an error.
    """
    return MetalLimits(wired_bytes=min(budget_bytes, working_set_bytes), cache_bytes=int(budget_bytes * HEADROOM))


def limit_metal(budget_bytes: int) -> None:
    """Set the limits of this process, if it computes with Metal.

    They last as long as the process: memory that no array uses is not wired. Another stage in this process may have
    wired more, which is kept. Before macOS 15 nothing is wired.
    """
    if mx.metal.is_available():
        apply(metal_limits(budget_bytes, int(mx.device_info()["max_recommended_working_set_size"])))


def apply(limits: MetalLimits) -> None:
    """Set limits in MLX."""
    before = mx.set_wired_limit(limits.wired_bytes)
    if before > limits.wired_bytes:
        mx.set_wired_limit(before)
    mx.set_cache_limit(limits.cache_bytes)
