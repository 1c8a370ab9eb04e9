"""What a stage takes of a machine's memory, and what the machine can give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
from mlx_lm.models import cache as caches

from shardhub.model.stage import Stage, StageCache, cache_arrays

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


def kv_bytes(stage: Stage, context: int) -> int:
    """Bytes of KV cache that one session of `context` positions takes on a stage.

    Found by asking the architecture's own caches, lazily: each is grown by a chunk on placeholders. Padding to the
    caches' allocation step is counted, and so is the copy of one cache while it grows.
    """
    if context <= 0:
        return 0
    state = stage.new_cache()
    _grow(stage, state, _PROBE_POSITIONS)
    sizes = [_bytes_at(part, context) for entry in state.owned for part in getattr(entry, "caches", (entry,))]
    return sum(sizes) + max(sizes, default=0)


def _grow(stage: Stage, state: StageCache, length: int) -> None:
    stage.run(mx.zeros((1, length), mx.int32), state, stage.placeholders(length), position=0, need_logits=False)


def _bytes_at(entry: Any, context: int) -> int:
    held: int = sum(array.nbytes for array in cache_arrays([entry]))
    keys = getattr(entry, "keys", None)
    if not isinstance(keys, mx.array):
        return held  # state of a fixed size
    positions = context
    if isinstance(entry, caches.RotatingKVCache):
        positions = min(context, entry.max_size + _PROBE_POSITIONS)
    elif isinstance(entry, caches.ChunkedKVCache):
        positions = min(context, entry.chunk_size + _PROBE_POSITIONS)
    step = getattr(entry, "step", 1)
    padded = (positions + step - 1) // step * step
    return held * padded // max(1, keys.shape[2])
