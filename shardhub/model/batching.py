"""Batched caches of a stage: merge, extend, keep, extract, trim and snapshot.

Each function returns new caches and leaves its arguments unchanged. Arrays are shared until one side is written to, so
a copy costs nothing before the next step, and nothing at all if the other is dropped.
Each operation is applied once to each cache object, because foreign slots share ghosts. A ghost is an ordinary cache:
when merged it has an offset for each row, so masks and rotations made from it are right for each row.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as caches

from shardhub.errors import SessionNotRewindable, UnsupportedModel
from shardhub.model.stage import StageCache

# Exactly these classes, not their subclasses: what a subclass adds would be lost silently.
_SINGLE = (caches.KVCache, caches.RotatingKVCache, caches.ArraysCache)
_MERGED = (caches.BatchKVCache, caches.BatchRotatingKVCache, caches.ArraysCache)
_TRIMMABLE = (
    caches.KVCache,
    caches.RotatingKVCache,
    caches.ChunkedKVCache,
    caches.BatchKVCache,
    caches.BatchRotatingKVCache,
    caches.QuantizedKVCache,
)
# Rewind limit of caches that can always be trimmed.
_NO_LIMIT = sys.maxsize


def merge(sequences: Sequence[StageCache]) -> StageCache:
    """Merge single sequences, each at its own position, into one batch.

    Args:
        sequences: Caches of one sequence each, all of one stage, each with at least one position.

    Returns:
        Caches with B = len(sequences) rows in this order, padded on the left to the longest.

    Raises:
        UnsupportedModel: A cache has no batched form.
    """
    rows = [_entries(sequence) for sequence in sequences]
    for entry in rows[0]:
        _require(entry, _SINGLE, "merged")
        if any(getattr(part, "keep", 0) for part in _parts(entry)):
            raise UnsupportedModel(
                "A sliding window that keeps its first positions cannot be merged.",
                why="mlx-lm's batched form of it would drop them.",
                hint="Run its sequences one at a time.",
            )
    merged = [same[0].merge(list(same)) for same in zip(*rows, strict=True)]
    return _with_entries(sequences[0], merged)


def extend(cache: StageCache, other: StageCache) -> StageCache:
    """Append the rows of `other` to those of `cache`; both must be merged caches.

    Raises:
        UnsupportedModel: A cache has no batched form.
    """
    result, added = snapshot(cache), snapshot(other)
    for entry, more in zip(_entries(result), _entries(added), strict=True):
        _require(entry, _MERGED, "extended")
        _require(more, _MERGED, "extended")
        entry.extend(more)
    return result


def keep(cache: StageCache, rows: Sequence[int]) -> StageCache:
    """Select rows of merged caches, in this order.

    Raises:
        UnsupportedModel: A cache has no batched form.
    """
    result = snapshot(cache)
    chosen = mx.array(list(rows), mx.int32)
    for entry in _entries(result):
        _require(entry, _MERGED, "filtered")
        entry.filter(chosen)
    return result


def extract(cache: StageCache, row: int) -> StageCache:
    """Extract one row of merged caches as caches of a single sequence, without padding.

    Raises:
        UnsupportedModel: A cache has no batched form.
    """
    entries = _entries(cache)
    for entry in entries:
        _require(entry, _MERGED, "taken apart")
    return _with_entries(cache, [entry.extract(row) for entry in entries])


def is_trimmable(cache: StageCache) -> bool:
    """Whether `trim` can go back to any position down to 0."""
    return all(type(part) in _TRIMMABLE and _holds_all(part) for part in _all_parts(cache))


def rewind_limit(cache: StageCache) -> int:
    """Most positions from which `trim` can go back: 0 if a part holds recurrent state."""
    return min((_rewind_limit(part) for part in _all_parts(cache)), default=_NO_LIMIT)


def widest_window(cache: StageCache) -> int:
    """Positions of the widest sliding window or chunk among the caches; 0 without one."""
    sizes = [getattr(part, attribute, 0) for part in _all_parts(cache) for attribute in ("max_size", "chunk_size")]
    return max((size for size in sizes if isinstance(size, int)), default=0)


def trim(cache: StageCache, num: int) -> StageCache:
    """Go back by `num` positions, in every row.

    Raises:
        UnsupportedModel: A cache holds state that cannot go back.
        SessionNotRewindable: A cache holds too few positions, or has dropped what the new position needs.
    """
    result = snapshot(cache)
    for part in _all_parts(result):
        _check_trim(part, num)
        part.trim(num)
    return result


def trim_rows(cache: StageCache, nums: Sequence[int]) -> StageCache:
    """Go back by a different number of positions in each row of merged caches; padding makes up for the difference.

    Raises:
        UnsupportedModel: A cache holds state that cannot go back.
        SessionNotRewindable: A cache holds too few positions, or has dropped what the new position needs.
    """
    result = snapshot(cache)
    for part in _all_parts(result):
        _require(part, (caches.BatchKVCache, caches.BatchRotatingKVCache), "trimmed by row")
        _check_trim(part, nums)
        # Positions to forget become padding on the right, which upstream rolls away in prepare and finalize.
        part.prepare(lengths=[-num for num in nums], right_padding=list(nums))
        part.finalize()
    return result


def snapshot(cache: StageCache) -> StageCache:
    """A copy to return to, which shares its arrays with the original until the next step writes to one of them."""
    return copy.deepcopy(cache)


def _rewind_limit(part: Any) -> int:
    if type(part) not in _TRIMMABLE:
        return 0
    if isinstance(part, caches.RotatingKVCache):
        return max(0, int(part.max_size) - 1)
    if isinstance(part, caches.ChunkedKVCache):  # its front is dropped once this many positions are allocated
        return int(part.chunk_size) // int(part.step) * int(part.step)
    return _NO_LIMIT


def _holds_all(part: Any) -> bool:
    """Whether a cache has dropped nothing; a chunked one claims to be trimmable even after it dropped its front."""
    return bool(part.is_trimmable()) and not getattr(part, "start_position", None)


def _check_trim(part: Any, num: int | Sequence[int]) -> None:
    nums = [num] if isinstance(num, int) else list(num)
    _require(part, _TRIMMABLE, "trimmed")
    if not _holds_all(part):
        raise SessionNotRewindable(
            f"The KV cache cannot go back by {max(nums)} positions.",
            why="A sliding window has already dropped earlier positions that are needed there.",
            hint="Go back to a snapshot, or reset and replay.",
        )
    offset: Any = part.offset
    held: Any = offset.tolist() if isinstance(offset, mx.array) else [offset]
    if len(nums) not in (1, len(held)):
        raise ValueError(f"{len(nums)} numbers of positions were given for {len(held)} rows")
    if min(nums) < 0 or any(have < num for have, num in zip(held, nums * len(held), strict=False)):
        raise SessionNotRewindable(
            f"The KV cache cannot go back by {max(nums)} positions.", why=f"It holds {min(held)}."
        )


def _parts(entry: Any) -> Iterator[Any]:
    """The caches in a cache list, or the cache itself."""
    if isinstance(entry, caches.CacheList):
        for part in entry.caches:
            yield from _parts(part)
    else:
        yield entry


def _all_parts(cache: StageCache) -> Iterator[Any]:
    for entry in _entries(cache):
        yield from _parts(entry)


def _require(entry: Any, classes: Collection[type], what: str) -> None:
    for part in _parts(entry):
        if type(part) not in classes:
            raise UnsupportedModel(
                f"A cache of class {type(part).__name__} cannot be {what}.",
                why="mlx-lm does not implement that for it.",
                hint="Run its sequences one at a time.",
            )


def _entries(cache: StageCache) -> list[Any]:
    """The cache objects behind a view, each once, in the order of their first slot."""
    return list({id(entry): entry for entry in cache.view}.values())


def _with_entries(cache: StageCache, entries: Sequence[Any]) -> StageCache:
    """A cache of the same structure with other entries."""
    other = {id(old): new for old, new in zip(_entries(cache), entries, strict=True)}

    def swap(entries: list[Any]) -> list[Any]:
        return [other[id(entry)] for entry in entries]

    return StageCache(view=swap(cache.view), owned=swap(cache.owned), ghosts=swap(cache.ghosts))
