"""A stage: upstream's whole model object, of which only some layers run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import cache as caches

from shardhub.errors import ProofExceeded, UnsupportedModel, WireError
from shardhub.model import kv_replay, poison, taps
from shardhub.model.anatomy import Anatomy
from shardhub.model.arrays import dtype_name
from shardhub.model.lazily import forward, make_cache
from shardhub.protocol import KvQuantization

# Hint for a session that went beyond what was proven.
BEYOND_PROOF = (
    "The session ended before a token was drawn from it. Split the model again with this version of shardhub, which "
    "checks more, and report the model if this happens again."
)
# Most caches in a list of caches.
_MAX_PARTS = 8


@dataclass(frozen=True, slots=True)
class StageCache:
    """One sequence's caches on a stage.

    Attributes:
        view: What upstream's forward receives: one entry per slot, where foreign slots share ghosts.
        owned: Caches of this stage's layers, and those to which K and V of an earlier layer are replayed.
        ghosts: Stand-ins with one head and one dimension for the foreign slots, one per kind. They advance with each
            step, so that masks made from their offsets are right.
    """

    view: list[Any]
    owned: list[Any]
    ghosts: list[Any]


class Stage:
    """Runs layers `[start, stop)` of a model, lazily: nothing is evaluated here.

    Each instance runs one call at a time, because upstream's layer objects carry the tap.

    Args:
        model: Its own model object, whose parameters outside the stage are placeholders.
        anatomy: The result of `examine`.
        start, stop: Half-open range of layers.
        crossings_in: Names of the tensors received from the stage before.
        crossings_out: Names of the tensors sent to the next stage.
        kv: How K and V of its own layers are quantised.
    """

    def __init__(
        self,
        model: nn.Module,
        anatomy: Anatomy,
        start: int,
        stop: int,
        crossings_in: Sequence[str],
        crossings_out: Sequence[str],
        *,
        kv: KvQuantization | None = None,
    ) -> None:
        self.model = model
        self.anatomy = anatomy
        self.start = start
        self.stop = stop
        self.crossings_in = frozenset(crossings_in)
        self.crossings_out = frozenset(crossings_out)
        # Layers whose outputs leave the stage; all that they pass on is checked against the proof.
        self._guarded = {int(name.split(".")[1]) for name in crossings_out} - set(range(start))
        self._owned_slots = {slot for index in range(start, stop) for slot in anatomy.slots[index]}
        self._layer_slots = {slot for used in anatomy.slots for slot in used}
        self._replays = kv_replay.replayed(self.crossings_in)
        self._owned_slots |= {int(place.split(".")[0]) for there in self._replays.values() for place in there}
        self._shares = {
            layer: there for layer, there in kv_replay.replayed(self.crossings_out).items() if layer >= start
        }
        self._shares = _watched(anatomy, start, stop, self._shares) if self._guarded else {}
        self._kv = kv
        self._recorder = taps.Recorder()
        self._parts: dict[str, Any] = {}
        self._fetched: dict[str, mx.array] = {}
        self._incoming: Mapping[str, taps.Leaf] = {}
        self._outgoing: dict[str, taps.Leaf] = {}
        self._shape = (1, 1, 1)
        taps.install(model, self)

    @property
    def is_last(self) -> bool:
        return self.stop == self.anatomy.num_layers

    @property
    def shares_kv(self) -> bool:
        """Whether K and V of its layers cross to another stage, or those of another stage cross to this one."""
        return bool(self._replays or self._shares)

    def new_cache(self) -> StageCache:
        """Make empty caches for a sequence."""
        view: list[Any] = []
        owned: list[Any] = []
        ghosts: dict[Any, Any] = {}
        for slot, entry in enumerate(make_cache(self.model)):
            if slot in self._owned_slots or slot not in self._layer_slots:
                own = _quantized(entry, self._kv) if self._kv is not None and slot in self._owned_slots else entry
                owned.append(own)
                view.append(own)
            else:
                view.append(ghosts.setdefault(_kind(entry), entry))
        return StageCache(view, owned, list(ghosts.values()))

    def run(
        self,
        ids: mx.array,
        cache: StageCache,
        incoming: Mapping[str, taps.Leaf],
        *,
        position: int,
        need_logits: bool = True,
    ) -> dict[str, taps.Leaf] | mx.array:
        """Run this stage's layers over one chunk, lazily.

        Args:
            ids: Token ids (B, L) int32, on every stage.
            cache: The sequence's caches; they advance by L.
            incoming: Crossings from the stage before, by name; hidden states are (B, L, D).
            position: Positions the caches hold before this chunk.
            need_logits: False ends the last stage's pass after its last layer, if only the KV cache matters.

        Returns:
            Outgoing crossings by name; on the last stage logits (B, L, V), or nothing if `need_logits` is False.

        Raises:
            WireError: `incoming` lacks a crossing.
            ProofExceeded: A layer passed on something that the proof did not cover, or used what does not cross.
        """
        if missing := {name for name in self.crossings_in - incoming.keys() if not self._may_be_left_out(name)}:
            raise WireError(f"Stage [{self.start}, {self.stop}) did not receive the crossing {min(missing)}.")
        batch, length = ids.shape
        self._incoming = incoming
        self._outgoing = {name: value for name, value in incoming.items() if name in self.crossings_out}
        self._shape = (batch, length, position + length)
        self._recorder = taps.Recorder()
        self._ends_at = self.stop - 1 if not (self.is_last and need_logits) else self.anatomy.num_layers
        if self._replays or self._shares:
            self._parts = kv_replay.places(cache.view)
        logits = None
        try:
            logits = forward(self.model, ids, list(cache.view))
        except taps.PassDone:
            pass
        except Exception as error:
            if (refused := poison.refusal(error)) is not None:
                raise refused from error
            raise
        finally:
            # Keep nothing of the step: what caches returned are views of all their K and V.
            self._incoming, self._parts, self._fetched = {}, {}, {}
            self._recorder = taps.Recorder()
        for entry in cache.ghosts:
            _advance(entry, batch, length)
        outgoing, self._outgoing = self._outgoing, {}
        if logits is None:
            self._check(outgoing)
        return outgoing if logits is None else logits

    def _check(self, outgoing: Mapping[str, taps.Leaf]) -> None:
        """Check outgoing crossings against their descriptions.

        Raises:
            ProofExceeded: A crossing is missing, or has a dtype or shape that was not proven.
        """
        batch, length, total = self._shape
        for name in self.crossings_out:
            crossing, leaf = self.anatomy.leaves[name], outgoing.get(name)
            if crossing is None or (leaf is None and (crossing.may_be_left_out or self.is_last)):
                continue
            if isinstance(leaf, mx.array):
                form = f"{dtype_name(leaf.dtype)}{list(leaf.shape)}"
                is_number = crossing.is_number and leaf.shape in ((), (batch,))  # merged caches have one for each row
                admitted = crossing.admits(tuple(leaf.shape), batch=batch, length=length, total=total)
                if is_number or (admitted and dtype_name(leaf.dtype) == crossing.dtype):
                    continue
            elif leaf is not None and crossing.is_number:
                continue
            else:
                form = "missing" if leaf is None else f"the number {leaf}"
            raise ProofExceeded(
                f"{name} differs from what was proven, at position {total - length}.",
                why=f"It is {form}, but the proof covers {crossing.dtype}{list(crossing.shape)}.",
                hint=BEYOND_PROOF,
            )

    def on_layer(self, index: int, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer upstream's call of layer `index`: inject before `start`, run within, end the pass at `stop - 1`."""
        if index < self.start:
            for place in self._replays.get(index, ()):
                self._take_in(index, place)
            tree = self.anatomy.trees[index]
            taps.replay_changes(tree, args, kwargs, self._crossed)
            return taps.rebuild(tree, self._crossed)
        with kv_replay.watch({place: self._parts[place] for place in self._shares.get(index, ())}) as updates:
            out = call(*args, **kwargs)
        if index in self._guarded or updates:
            record = self._recorder.record(index, out, args, kwargs, updates)
            if index in self._guarded:
                self._guard(index, record)
                self._outgoing.update({n: leaf for n, leaf in record.leaves.items() if n in self.crossings_out})
        if index == self._ends_at:
            raise taps.PassDone
        return out

    def _guard(self, index: int, record: taps.Record) -> None:
        """Check the form of what a layer passes on against the proof.

        Raises:
            ProofExceeded: The proof did not cover this form.
        """
        if (change := taps.difference(self.anatomy.trees[index], record.tree)) is not None:
            _, length, total = self._shape
            raise ProofExceeded(
                f"Layer {index} passed on a value that was not proven, at position {total - length}.",
                why=f"layer.{index}{change if change.startswith('.') else ': ' + change}.",
                hint=BEYOND_PROOF,
            )

    def _take_in(self, index: int, place: str) -> None:
        """Replay into a cache here the new K and V that a layer before this stage handed its own cache."""
        keys, values = (self._incoming.get(name) for name in kv_replay.new_names(index, place))
        fetched = self._parts[place].update_and_fetch(keys, values)
        names = kv_replay.all_names(index, place)
        self._fetched.update(zip(names, fetched, strict=True))
        self._recorder.know(names, fetched)

    def _may_be_left_out(self, name: str) -> bool:
        crossing = self.anatomy.leaves[name]
        return crossing is not None and crossing.may_be_left_out

    def _crossed(self, name: str) -> taps.Leaf | None:
        """A foreign layer's value: what came over the wire, or a stand-in on which nothing may depend."""
        if name in self._incoming:
            return self._incoming[name]
        if name in self._fetched:
            return self._fetched[name]
        crossing = self.anatomy.leaves.get(name)
        if crossing is not None and crossing.may_be_left_out and name in self.crossings_in:
            return None
        batch, length, total = self._shape
        leaf: taps.Leaf = poison.leaf(name, crossing, batch=batch, length=length, total=total)
        return leaf


def _watched(
    anatomy: Anatomy, start: int, stop: int, shares: Mapping[int, tuple[str, ...]]
) -> dict[int, tuple[str, ...]]:
    """Places, by layer, whose updates are recorded: those whose K and V cross, or appear in what a layer passes on."""
    known = {name for tree in anatomy.trees for name in taps.slots(tree)}
    watched = dict(shares)
    for layer in range(start, stop):
        places = {
            place
            for slot in anatomy.slots[layer]
            for place in (str(slot), *(f"{slot}.{part}" for part in range(_MAX_PARTS)))
            if known & set(kv_replay.all_names(layer, place))
        }
        if places:
            watched[layer] = tuple(dict.fromkeys((*watched.get(layer, ()), *sorted(places))))
    return watched


def _quantized(entry: Any, kv: KvQuantization) -> Any:
    """A cache that keeps K and V quantised, if mlx-lm has one for this kind; else the same cache."""
    plain = type(entry) is caches.KVCache
    return caches.QuantizedKVCache(group_size=kv.group_size, bits=kv.bits) if plain else entry


def cache_arrays(entries: Sequence[Any]) -> list[mx.array]:
    """All arrays in a list of caches."""
    return [array for entry in entries for array in _arrays(entry.state)]


def _arrays(value: Any) -> Iterator[mx.array]:
    # Not a recursive closure: such a cycle kept a step's arrays, and so all KV, alive until garbage collection.
    if isinstance(value, mx.array):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _arrays(item)


def _kind(entry: Any) -> Any:
    """The kind of a cache, its class and settings; one ghost stands for all caches of a kind."""
    if isinstance(entry, caches.CacheList):
        return ("CacheList", *(_kind(part) for part in entry.caches))
    settings = sorted((key, value) for key, value in vars(entry).items() if isinstance(value, int | float | str))
    return (type(entry), tuple(settings), len(getattr(entry, "cache", ())))


def _advance(entry: Any, batch: int, length: int) -> None:
    """Advance a ghost cache by `length` positions of NaN, so that its offset matches a real cache's."""
    if isinstance(entry, caches.CacheList):
        for part in entry.caches:
            _advance(part, batch, length)
    elif isinstance(entry, caches.ArraysCache):
        for index, content in enumerate(entry.cache):
            if content is None:
                entry[index] = poison.nan((batch, 1))
        entry.advance(length)
    elif hasattr(entry, "update_and_fetch"):
        entry.update_and_fetch(poison.nan((batch, 1, length, 1)), poison.nan((batch, 1, length, 1)))
    elif hasattr(entry, "update_window"):  # deepseek_v41's own cache class
        entry.update_window(poison.nan((batch, length, 1)))
    else:
        raise UnsupportedModel(f"shardhub does not know how to advance a {type(entry).__name__} of another stage.")
