"""Memory that a stage needs, and memory that the machine can give."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as caches

from shardhub.errors import UnsupportedModel
from shardhub.memory_limits import installed_memory, memory_left
from shardhub.model.batching import widest_window
from shardhub.model.stage import Stage, cache_arrays
from shardhub.model.tracing import unevaluated
from shardhub.model.trial import Trial

# Share of installed memory a process may take if the system names no working set: Apple's own figure for its GPU.
_ASSUMED_SHARE = 0.75
# Share used of what a limit leaves before the kernel kills the process or refuses memory: the rest is for threads and
# buffers.
_SHARE_OF_LIMIT = 0.9
# Share of the budget kept free for what a forward needs beside weights and KV cache: the buffers of one chunk.
HEADROOM = 0.10
# Memory that a node takes beside its stage, whatever its size: a warm-up's buffers, compiled kernels, threads, gRPC.
# Measured on two cores with stages of 0.17 to 0.30 GB: 60 to 100 MB.
_BESIDE_BYTES = 128 << 20
_PLAIN = "Leave out `kv_bits`, or try another `kv_group_size`."
# A window's cache holds the window and the incoming chunk; no chunk is larger than this.
_LARGEST_CHUNK = 512


def memory_budget() -> int:
    """Bytes this process may take: Metal's recommended working set, else three quarters of installed memory.

    If a control group or a resource limit is tighter, most of what it leaves.
    """
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    budget, left = int(installed_memory() * _ASSUMED_SHARE), memory_left()
    return budget if left is None else min(budget, int(left * _SHARE_OF_LIMIT))


def room_for_weights(budget_bytes: int | None) -> int:
    """Most bytes of weights that can be loaded, whatever the context.

    Args:
        budget_bytes: Memory budget; None derives it from the machine.
    """
    room = int((memory_budget() if budget_bytes is None else budget_bytes) * (1 - HEADROOM))
    left = left_for_stage(memory_left())
    return room if left is None else min(room, left)


def left_for_stage(left_bytes: int | None) -> int | None:
    """Bytes for weights and KV cache out of what limits leave this process; None without a limit."""
    return None if left_bytes is None else max(0, left_bytes - _BESIDE_BYTES)


def release_unused() -> None:
    """Release what proofs and a warm-up left: garbage, MLX's buffers, and free memory that malloc keeps."""
    gc.collect()
    mx.clear_cache()
    if platform.system() == "Linux":
        with contextlib.suppress(OSError, AttributeError):  # the C library is not glibc
            ctypes.CDLL(None).malloc_trim(0)


def kv_cost(stage: Stage, trial: Trial) -> Callable[[int], int]:
    """Measure a stage's caches once; the returned function gives the bytes of a session with a number of positions.

    The architecture's own caches are grown by two chunks on placeholders, lazily. The result includes padding to the
    caches' allocation step, and the copy of one cache while it grows.

    Args:
        stage: A stage without weights, because some models keep what their first forward derives from weights.
        trial: Makes up its inputs.
    """
    state, before = stage.new_cache(), trial.new_cache()
    held: list[list[int]] = []
    position = 0
    lengths = (widest_window(state) + 3, 5)
    for length in lengths:
        chunk = trial.chunk(length, position + length, lazily=True)
        ids, leaves = trial.step([chunk], before, position=position)
        with unevaluated():
            stage.run(ids, state, leaves, position=position, need_logits=False)
        position += length
        held.append([_held_bytes(part) for part in _parts(state.owned)])
    growths = [
        _growth(part, first, second, lengths) for part, first, second in zip(_parts(state.owned), *held, strict=True)
    ]

    def kv_bytes(context: int) -> int:
        sizes = [growth.bytes_at(context) for growth in growths]
        return sum(sizes) + max(sizes, default=0)

    return kv_bytes


def quantized_kv_cost(stage: Stage, trial: Trial) -> Callable[[int], int]:
    """As `kv_cost` for quantised K and V; also checks that upstream's forward accepts them.

    Raises:
        UnsupportedModel: The forward does not accept them, or there are none to quantise.
    """
    name = stage.model.__class__.__module__.rpartition(".")[2]
    refused = f"The KV cache of {name} cannot be quantised in layers {stage.start} to {stage.stop - 1}."
    # Layers of other stages count too, by their ghosts: a stage with only windows follows the others of its pipeline.
    if not any(type(entry) in (caches.QuantizedKVCache, caches.KVCache) for entry in stage.new_cache().view):
        raise UnsupportedModel(refused, why="mlx-lm has no quantised form of its caches.", hint=_PLAIN)
    if stage.shares_kv:
        raise UnsupportedModel(refused, why="Layers of other stages attend to the same keys and values.", hint=_PLAIN)
    try:
        return kv_cost(stage, trial)
    except Exception as error:  # upstream's forwards may raise anything
        why = f"mlx-lm's forward does not accept it: {str(error).partition(chr(10))[0][:200]}"
        raise UnsupportedModel(refused, why=why, hint=_PLAIN) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Growth:
    """Growth of one cache: `fixed_bytes`, and `position_bytes` for each position, in steps, up to a limit."""

    fixed_bytes: int = 0
    position_bytes: float = 0
    step: int = 1
    limit: int | None = None

    def bytes_at(self, context: int) -> int:
        num_positions = context if self.limit is None else min(context, self.limit)
        padded = (num_positions + self.step - 1) // self.step * self.step
        return self.fixed_bytes + math.ceil(self.position_bytes * padded)


def _parts(entries: Sequence[Any]) -> list[Any]:
    return [part for entry in entries for part in getattr(entry, "caches", (entry,))]


def _held_bytes(entry: Any) -> int:
    """Bytes of a cache in memory, including reserved room."""
    buffers = [getattr(entry, name, None) for name in ("keys", "values")]
    arrays = [buffer for buffer in buffers if isinstance(buffer, mx.array)] or cache_arrays([entry])
    return sum(array.nbytes for array in arrays)


def _growth(entry: Any, before: int, after: int, chunks: Sequence[int]) -> _Growth:
    """Growth of a cache that held `before` bytes after the first chunk and `after` bytes after the second."""
    keys = getattr(entry, "keys", None)
    if isinstance(entry, caches.QuantizedKVCache):
        keys = entry.keys[0]
    if not isinstance(keys, mx.array):
        # State of a fixed size, or an architecture's own class, which may grow in any way.
        return _Growth(fixed_bytes=before, position_bytes=max(0, after - before) / chunks[1])
    limit = None
    if isinstance(entry, caches.RotatingKVCache):
        limit = entry.max_size + _LARGEST_CHUNK
    elif isinstance(entry, caches.ChunkedKVCache):
        limit = entry.chunk_size + _LARGEST_CHUNK
    per_position = after / max(1, keys.shape[2])
    return _Growth(position_bytes=per_position, step=getattr(entry, "step", 1), limit=limit)
