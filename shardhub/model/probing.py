"""Finding the chunks that show every branch of a model's forward, by running it lazily instead of guessing from names.

A forward may behave differently from some position on: a window is full, a group of positions closes, a sequence passes
the length it was trained for. The numbers with which positions are compared are read from the conditions in upstream's
code, and each is approached from below, met and passed. Then positions are doubled, because not all code uses
conditions. The chunks are the few steps that show everything seen on the way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import mlx.core as mx

from shardhub.model import taps
from shardhub.model.audit import Audit
from shardhub.model.branches import Decision, Number, Place, Record, watching
from shardhub.model.build import Blueprint
from shardhub.model.lazily import make_cache, run_lazily

# The first run of every model: one id, a chunk, and two single ids.
_START = (1, 4, 1, 1)
# Steps after a number with which positions are compared: a chunk and one more id.
_BEYOND = (5, 1)
# Positions are doubled up to this, or up to the positions the model was made for according to its configuration.
_MAX_POSITIONS = 1 << 20
# In order: most rounds of solving conditions for the position at which they turn; most numbers in one round; processor
# seconds of a step after which positions are no longer doubled, because forwards that loop over positions take long;
# and how much further than that numbers are still met.
_MAX_ROUNDS = 4
_MAX_TARGETS = 12
_MAX_STEP_S = 0.25
_MAX_SLOWNESS = 16
# Fields of config.json with the positions a model was made for.
_CONTEXT_FIELDS = (
    "max_position_embeddings", "max_seq_len", "n_positions", "n_ctx", "model_max_length", "max_sequence_length",
)  # fmt: skip
# Modules of mlx-lm that all models share. Whole model and stages meet their conditions alike, and some of these are
# invariants that never turn.
SHARED_MODULES = frozenset(("cache", "base", "rope_utils", "switch_layers", "activations", "pipeline"))
# Caches with conditions on the room they have left, whose contents do not depend on the outcome.
_STORAGE = ("KVCache.", "QuantizedKVCache.", "ConcatenateKVCache.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreached:
    """A condition that depends on the step and of which one outcome was never seen.

    Attributes:
        place: Its place in the code.
        never: The outcome that was not seen.
        operands: The operands last compared.
        comes_at: The position, beyond those run, at which it would turn; None if unknown.
        is_open: Whether it is in the model's own code and may turn within the positions the model was made for.
    """

    place: Place
    never: bool
    operands: tuple[Any, ...] | None
    comes_at: int | None
    is_open: bool

    def __str__(self) -> str:
        compared = "" if self.operands is None else f", last decided by the values {', '.join(map(str, self.operands))}"
        when = f", expected to change near position {self.comes_at}" if self.comes_at is not None else ""
        return f"{self.place} was never {str(self.never).lower()}{compared}{when}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probing:
    """The steps that probe a model, and what they show of its code.

    Attributes:
        chunks: Lengths L of the chunks of one sequence.
        lengths: Numbers with which positions are compared.
        num_conditions: Number of conditions in upstream's code that were met.
        num_positional: Number of those that depend on the step.
        unreached: Those of which one outcome was never seen.
    """

    chunks: tuple[int, ...]
    lengths: tuple[int, ...]
    num_conditions: int
    num_positional: int
    unreached: tuple[Unreached, ...]


def find_chunks(blueprint: Blueprint) -> Probing:
    """Run a model lazily until no new branch appears, and choose chunks that show all branches.

    Raises:
        UnsupportedModel: The model's forward cannot be run on placeholders.
    """
    explorer = _Explorer(blueprint)
    explorer.run(_START, is_close=True)
    explorer.solve()
    explorer.double()
    chunks = explorer.choose()
    explorer.audit.finish(chunks)
    return Probing(
        chunks=chunks,
        lengths=explorer.lengths(),
        num_conditions=len(explorer.record.places()),
        num_positional=sum(explorer.record.depends_on_step(place) for place in explorer.record.places()),
        unreached=tuple(explorer.unreached()),
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of a run: positions before it, its length, and what was seen in it."""

    position: int
    length: int
    seen: frozenset[Any]


class _Explorer:
    """Runs one model and collects what is seen."""

    def __init__(self, blueprint: Blueprint) -> None:
        self._model = blueprint.build()
        self.record = Record()
        self.audit = Audit(blueprint, self._model)
        self.steps: list[_Step] = []
        self._tried: set[int] = set()
        self._chunks: set[int] = set()
        self._limit = _limit(blueprint)
        self._slow_from = self._limit

    def run(self, chunks: Sequence[int], *, is_scan: bool = False, is_close: bool = False) -> list[_Step]:
        """Run a new sequence through these chunks.

        A scan ends with the first slow step; a close run is audited in its last steps.
        """
        cache = make_cache(self._model)
        self.audit.begin(cache)
        layers = _Layers(self.audit)
        taps.install(self._model, layers)
        steps: list[_Step] = []
        for left, position, length in zip(reversed(range(len(chunks))), [0, *accumulate(chunks)], chunks, strict=False):
            self.record.begin()
            layers.begin()
            started = time.process_time()
            with self.audit.step(left if is_close else None), watching(self.record):
                run_lazily(self._model, mx.zeros((1, length), mx.int32), cache)
            seen = {
                (place, decision.outcome)
                for place, decisions in self.record.steps[-1].items()
                if not place.function.startswith(_STORAGE)
                for decision in decisions
            }
            steps.append(_Step(position, length, frozenset(seen | layers.seen)))
            if is_scan and time.process_time() - started > _MAX_STEP_S:
                self._slow_from = min(self._slow_from, position + length)
                break
        self.steps += steps
        return steps

    def solve(self) -> None:
        """Meet and pass every number with which positions are compared, until no new one appears."""
        for _ in range(_MAX_ROUNDS):
            targets = sorted(target for target in self._targets() if 2 < target <= self._reach)
            targets = [target for target in targets if target not in self._tried][:_MAX_TARGETS]
            if not targets and not self._lengths() - self._chunks:
                return
            self._tried.update(targets)
            self.run(_approach(targets))
            chunks = {n for n in self._lengths() for n in (n, n + 1) if 1 < n <= self._reach} - self._chunks
            if chunks:
                self._chunks |= chunks
                self.run((*_START, *sorted(chunks)))

    def double(self) -> None:
        """Search positions far apart for anything new, and find where it begins."""
        chunks, position = list(_START), sum(_START)
        while position < self._slow_from:
            chunks.append(min(3 * position, self._slow_from - position))
            position += chunks[-1]
        known = self._all_seen()
        steps = self.run([*chunks, 1], is_scan=True)
        for step in steps[len(_START) :]:
            if step.seen <= known:
                continue
            low, high = step.position, step.position + step.length
            while high - low > 1:  # find the first position at which a sequence shows what is new here
                middle = (low + high) // 2
                longer = self.run((*_START, middle - sum(_START), 1)) if middle > sum(_START) else []
                if longer and not longer[-1].seen <= known:
                    high = middle
                else:
                    low = middle
            self._tried.add(high)
            self.run(_approach([high]))
            known |= self._all_seen()
            self.solve()

    def choose(self) -> tuple[int, ...]:
        """Chunks of one sequence that show everything seen; steps without anything new are merged into the next."""
        required = self._all_seen()
        steps = self.run((*_approach(sorted(self._tried)), *sorted(self._chunks)), is_close=True)
        # Forms of values that were seen on the way to something else are included too. (A condition may be met only
        # once per process, if upstream compiles a function.)
        if missing := {item for item in required - _seen(steps) if not isinstance(item[0], Place)}:
            for step in self.steps:
                if step.seen & missing:
                    missing -= step.seen
                    self._tried.add(step.position + step.length)
                    self._chunks.add(step.length)
            steps = self.run((*_approach(sorted(self._tried)), *sorted(self._chunks)))
        while len(fewer := _merged(steps)) < len(steps):
            fewer_steps = self.run(fewer)
            if not _seen(fewer_steps) >= _seen(steps):
                break
            steps = fewer_steps
        return (*(step.length for step in steps), *self._ending(steps))

    def _ending(self, steps: Sequence[_Step]) -> tuple[int, ...]:
        """Steps after the last chunk: a single id, and more if values appeared late.

        Steps of several lengths show whether a size counts the positions so far or those of a chunk.
        """
        forms = {item for step in steps for item in step.seen if not isinstance(item[0], Place)}
        if len({layer for layer, *_ in forms}) < len(forms):
            return (1, steps[-1].position + steps[-1].length + 6, 1)
        return (1,)

    def lengths(self) -> tuple[int, ...]:
        """Numbers in conditions whose outcome changed with the position."""
        turning = {
            operand
            for place in self.record.places()
            if len(self.record.outcomes(place)) > 1 and not place.function.startswith(_STORAGE)
            for _, _, decision in self._decisions(place)
            for operand in decision.operands or ()
            if isinstance(operand, int) and operand > 2 and self._is_constant(place, operand)
        }
        return tuple(sorted(turning))

    def unreached(self) -> list[Unreached]:
        """Conditions that depend on the step and of which one outcome was never seen."""
        branches = []
        for place in sorted(self.record.places()):
            outcomes = self.record.outcomes(place)
            if len(outcomes) > 1 or not self.record.depends_on_step(place) or place.function.startswith(_STORAGE):
                continue
            last = self._decisions(place)[-1][2]
            apart = self._apart(place)
            comes_nearer = any(later < earlier for earlier, later in pairwise(apart))
            is_steady = not any(later > earlier for earlier, later in pairwise(apart))
            turns = self._turns(place) if is_steady else None
            can_turn = (comes_nearer or not apart) and (turns is None or turns <= self._limit)
            can_turn &= not self._is_of_length(place)  # chunks of the lengths it names were run
            branches.append(
                Unreached(
                    place=place,
                    never=not last.outcome,
                    operands=last.operands,
                    comes_at=turns if turns is not None and turns > self._furthest(place) else None,
                    is_open=can_turn and place.module not in SHARED_MODULES,
                )
            )
        return branches

    @property
    def _reach(self) -> int:
        """Positions up to which meeting a number is worth the time: a forward may loop over positions."""
        return min(self._limit, self._slow_from * _MAX_SLOWNESS)

    def _all_seen(self) -> set[Any]:
        return set().union(*(step.seen for step in self.steps))

    def _decisions(self, place: Place) -> list[tuple[int, int, Decision]]:
        """Position, length and decision of each time a condition was met."""
        return [
            (step.position, step.length, decision)
            for step, seen in zip(self.steps, self.record.steps, strict=True)
            for decision in seen.get(place, ())
        ]

    def _furthest(self, place: Place) -> int:
        return max(position + length for position, length, _ in self._decisions(place))

    def _targets(self) -> set[int]:
        """Positions at which conditions with one outcome so far would turn, and numbers they contain."""
        moduli: set[int] = set()
        for place in self.record.places():
            if place.function.startswith(_STORAGE) or not self.record.depends_on_step(place):
                continue
            decisions = [decision for _, _, decision in self._decisions(place)]
            moduli.update(modulus for decision in decisions for modulus in decision.moduli)
            if len(self.record.outcomes(place)) > 1 and place.module in SHARED_MODULES:
                continue
            for decision in decisions:
                constants = [operand for operand in decision.operands or () if isinstance(operand, int)]
                moduli.update(constant for constant in constants if self._is_constant(place, constant))
            if (turn := self._turns(place)) is not None:
                moduli.update((turn,))
        return moduli

    def _lengths(self) -> set[int]:
        """Numbers with which the length of a chunk is compared."""
        return {
            operand
            for place in self.record.places()
            if place.module not in SHARED_MODULES and self._is_of_length(place)
            for *_, decision in self._decisions(place)
            for operand in decision.operands or ()
            if isinstance(operand, int) and 1 < operand <= self._reach and self._is_constant(place, operand)
        }

    def _is_of_length(self, place: Place) -> bool:
        """Whether a condition depends on the length of the chunk and on nothing else that changes."""
        return all(
            decision.operands is not None and length in decision.operands
            for _, length, decision in self._decisions(place)
        )

    def _is_constant(self, place: Place, value: int) -> bool:
        """Whether a number is an operand of a condition each time it is met."""
        return all(value in (decision.operands or ()) for _, _, decision in self._decisions(place))

    def _turns(self, place: Place) -> int | None:
        """The position at which the two sides of a condition would meet if they continued linearly."""
        points = [
            (position + length, difference)
            for position, length, decision in self._decisions(place)
            if (difference := decision.difference) is not None
        ]
        if len(points) < 2:
            return None
        (first, early), (last, late) = min(points), max(points)
        if late == early or (last - first) == 0:
            return None
        turn = last - late * (last - first) / (late - early)
        return round(turn) if 0 < turn <= _MAX_POSITIONS else None

    def _apart(self, place: Place) -> list[Number]:
        """The differences between the two sides of a condition, in order of positions."""
        return [
            abs(difference)
            for *_, decision in sorted(self._decisions(place), key=lambda each: each[0] + each[1])
            if (difference := decision.difference) is not None
        ]


class _Layers:
    """A tap that records the form of what each layer passes on."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self.begin()

    def begin(self) -> None:
        """Start a step."""
        self.seen: set[Any] = set()
        self._recorder = taps.Recorder()

    def on_layer(self, index: int, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = call(*args, **kwargs)
        self._audit.on_layer(index)
        record = self._recorder.record(index, out, args, kwargs)
        forms = tuple((path, str(value)) for path, value in taps.constants(record.tree))
        leaves = tuple(
            sorted((name, leaf.ndim if isinstance(leaf, mx.array) else -1) for name, leaf in record.leaves.items())
        )
        self.seen.add((index, forms, leaves))
        return out


def _approach(targets: Iterable[int]) -> tuple[int, ...]:
    """Chunks that approach each of these positions, meet it by single ids, and pass it."""
    chunks, position = list(_START), sum(_START)
    for target in targets:
        if target - 1 > position:
            chunks.append(target - 1 - position)
            position = target - 1
        singles = max(0, target + 2 - position)
        chunks += [1] * singles
        position += singles
        chunks += _BEYOND
        position += sum(_BEYOND)
    return tuple(chunks)


def _merged(steps: Sequence[_Step]) -> tuple[int, ...]:
    """Lengths of steps that each show something new; steps between are merged into the next of these."""
    chunks: list[int] = []
    shown: set[Any] = set()
    waiting = 0
    for step in steps:
        if step.seen <= shown:
            waiting += step.length
            continue
        chunks += [waiting, step.length] if waiting else [step.length]
        waiting = 0
        shown |= step.seen
    return tuple(chunks)


def _seen(steps: Iterable[_Step]) -> set[Any]:
    return set().union(*(step.seen for step in steps))


def _limit(blueprint: Blueprint) -> int:
    """Positions the model was made for according to its configuration, up to the most that are probed."""
    blocks = (blueprint.config, blueprint.config.get("text_config"))
    values = [block[name] for block in blocks if isinstance(block, dict) for name in _CONTEXT_FIELDS if name in block]
    sizes = [size for size in values if isinstance(size, int) and size > 0]
    return min(_MAX_POSITIONS, max(sizes) + 8) if sizes else 1 << 17
