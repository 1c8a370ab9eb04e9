"""What a stage takes of a machine's memory, and what the machine can give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
from mlx_lm.models import cache as caches

from shardhub.model.stage import Stage, cache_arrays

# Share of installed memory a process may take where the system names no working set: Apple's own figure for its GPU.
_ASSUMED_SHARE = 0.75
# Positions the probe of a cache's growth takes in; two of them show what a position costs.
_PROBE_POSITIONS = 512


def memory_budget() -> int:
    """Bytes this process may take: Metal's recommended working set, else three quarters of what is installed."""
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    return int(installed_memory() * _ASSUMED_SHARE)


def installed_memory() -> int:
    """Bytes of memory, or of the control group's limit where that is smaller."""
    total = psutil.virtual_memory().total
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return int(total)
    return min(int(total), int(limit)) if limit.isdigit() else int(total)


def kv_cost(stage: Stage) -> Callable[[int], int]:
    """Ask a stage's caches once what they take; the answer gives the bytes of a session of so many positions.

    The architecture's own caches are grown by a chunk on placeholders, lazily. Padding to the caches' allocation step
    is counted, and so is the copy of one cache while it grows.
    """
    state = stage.new_cache()
    ids = mx.zeros((1, _PROBE_POSITIONS), mx.int32)
    stage.run(ids, state, stage.placeholders(_PROBE_POSITIONS), position=0, need_logits=False)
    growths = [_growth(part) for entry in state.owned for part in getattr(entry, "caches", (entry,))]

    def kv_bytes(context: int) -> int:
        sizes = [growth.bytes_at(context) for growth in growths]
        return sum(sizes) + max(sizes, default=0)

    return kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Growth:
    """How one cache grows: `held_bytes` for `positions`, in steps, up to a limit; no positions is a fixed size."""

    held_bytes: int
    positions: int = 0
    step: int = 1
    limit: int | None = None

    def bytes_at(self, context: int) -> int:
        if not self.positions:
            return self.held_bytes
        wanted = context if self.limit is None else min(context, self.limit)
        padded = (wanted + self.step - 1) // self.step * self.step
        return self.held_bytes * padded // self.positions


def _growth(entry: Any) -> _Growth:
    held = sum(array.nbytes for array in cache_arrays([entry]))
    keys = getattr(entry, "keys", None)
    if not isinstance(keys, mx.array):
        return _Growth(held_bytes=held)
    limit = None
    if isinstance(entry, caches.RotatingKVCache):
        limit = entry.max_size + _PROBE_POSITIONS
    elif isinstance(entry, caches.ChunkedKVCache):
        limit = entry.chunk_size + _PROBE_POSITIONS
    return _Growth(held_bytes=held, positions=max(1, keys.shape[2]), step=getattr(entry, "step", 1), limit=limit)
