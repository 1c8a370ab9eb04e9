"""K and V shared across a cut: what a layer hands its cache is replayed into a cache of another stage.

In some architectures later layers attend to the keys and values of an earlier one, read from its cache or passed on as
an output. Only the new ones cross a cut; the stage after it keeps a cache of its own to which they are added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

# Names for what a layer handed its cache, and for what it got back: everything the cache holds for attention.
_NEW = ("keys", "values")
_ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One call of a cache's `update_and_fetch`: new keys and values (B, H, L, D), and the result."""

    new: tuple[mx.array, mx.array]
    fetched: tuple[mx.array, mx.array]


def places(cache: Sequence[Any]) -> dict[str, Any]:
    """Every cache of a list by its place: `SLOT`, or `SLOT.PART` inside a list of caches."""
    parts_by_place: dict[str, Any] = {}
    for slot, entry in enumerate(cache):
        parts = getattr(entry, "caches", None)
        parts_by_place |= {str(slot): entry} if parts is None else {f"{slot}.{i}": part for i, part in enumerate(parts)}
    return parts_by_place


@contextmanager
def watch(parts: Mapping[str, Any]) -> Iterator[dict[str, Update]]:
    """Record updates of these caches by place; a cache that does not get exactly one K and V is left out."""
    calls: dict[str, list[Update | None]] = {place: [] for place in parts}
    updates: dict[str, Update] = {}

    def watched(place: str, update: Any) -> Any:
        def update_and_fetch(*args: Any, **kwargs: Any) -> Any:
            fetched = update(*args, **kwargs)
            plain = len(args) == 2 and not kwargs and isinstance(fetched, tuple) and len(fetched) == 2
            arrays = plain and all(isinstance(array, mx.array) for array in (*args, *fetched))
            calls[place].append(Update(new=(args[0], args[1]), fetched=fetched) if arrays else None)
            return fetched

        return update_and_fetch

    hooked = [(place, part) for place, part in parts.items() if hasattr(part, "update_and_fetch")]
    for place, part in hooked:
        part.update_and_fetch = watched(place, part.update_and_fetch)
    try:
        yield updates
    finally:
        for _, part in hooked:
            del part.update_and_fetch
        updates |= {place: seen[0] for place, seen in calls.items() if len(seen) == 1 and seen[0] is not None}


def new_names(layer: int, place: str) -> tuple[str, str]:
    """Crossing names of the new keys and values that a layer hands the cache at a place."""
    keys, values = (f"layer.{layer}.cache.{place}.{which}" for which in _NEW)
    return keys, values


def all_names(layer: int, place: str) -> tuple[str, str]:
    """Names of everything the cache holds after an update; these never cross, but identify the arrays in outputs."""
    keys, values = (f"{name}.{_ALL}" for name in new_names(layer, place))
    return keys, values


def replayed(crossings: Iterable[str]) -> dict[int, tuple[str, ...]]:
    """Places, by layer, whose new keys and values are among the crossings."""
    places_of: dict[int, dict[str, None]] = {}
    for name in crossings:
        parts = name.split(".")
        if len(parts) > 4 and parts[2] == "cache" and parts[-1] in _NEW:
            places_of.setdefault(int(parts[1]), {})[".".join(parts[3:-1])] = None
    return {layer: tuple(there) for layer, there in places_of.items()}
