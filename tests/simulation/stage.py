"""A stage of the simulation's model, and its runner: the product's engines use both like those of a real model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from functools import lru_cache, partial
from typing import Any, Self, TypeVar

import numpy as np

from shardhub.engine.jobs import Job, JobQueues
from shardhub.errors import NodeFailure, Overloaded
from shardhub.manifest import Crossing, Manifest, Source, StageEntry
from shardhub.model.drawn import Advanced, Drawn
from shardhub.model.stage_session import StageSession
from shardhub.parameters import SamplingParameters
from shardhub.protocol import StageFacts
from shardhub.tensors import RawTensor
from tests.simulation import arithmetic
from tests.simulation.arithmetic import VOCAB_SIZE, LayerKv
from tests.simulation.clock import HostClock

T = TypeVar("T")

CONTEXT = 256
MAX_CHUNK = 32
# Bytes of a position's KV in one layer.
KV_BYTES = 100
# Interval at which leases are checked between jobs, as in `ComputeThread`.
_IDLE_S = 1.0


@lru_cache
def manifest_of(cuts: tuple[int, ...], *, is_old: bool = False) -> Manifest:
    """The manifest of a pipeline whose stages end at these layers; an older one has other digests."""
    starts = [0, *cuts[:-1]]
    return Manifest(
        name="simulated",
        source=Source(repo=None, commit=None),
        config_digest=_digest("config"),
        num_layers=cuts[-1],
        stages=tuple(
            StageEntry(
                digest=_digest(f"stage {start} {stop} {is_old}"), start=start, stop=stop, size_bytes=1, locations=()
            )
            for start, stop in zip(starts, cuts, strict=True)
        ),
        files={},
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class HashSession(StageSession):
    """A sequence's KV on a stage."""

    def __init__(self, stage: HashStage, *, context: int, parameters: SamplingParameters) -> None:
        super().__init__(context=context, parameters=parameters)
        self._stage = stage
        self.layers = [LayerKv() for _ in range(stage.facts.start, stage.facts.stop)]

    def leave_group(self) -> None:
        pass

    def _empty(self, context: int, parameters: SamplingParameters) -> Self:
        return type(self)(self._stage, context=context, parameters=parameters)

    def _can_trim(self) -> bool:
        return self._stage.can_trim

    def _clear(self) -> None:
        for layer in self.layers:
            layer.digests.clear()

    def _trim(self, num: int) -> None:
        for layer in self.layers:
            del layer.digests[-num:]

    def _copy(self, other: Self, position: int) -> None:
        for layer, theirs in zip(self.layers, other.layers, strict=True):
            layer.digests = theirs.digests[:position]


class HashStage:
    """A `RunnableStage` whose layers are hashes.

    Args:
        manifest: The pipeline.
        first, last: The stages that it joins.
        can_trim: Whether sessions can go back.
        is_exact: Whether numbers depend on the shapes of steps.
        kv_positions: Positions that it has memory for, in all sessions.
        spend: Called with the ids of each step, which take time; raises what breaks the step.
    """

    is_published = True
    batch_refusal = None
    weight_bytes = 1000
    context = CONTEXT

    def __init__(
        self,
        manifest: Manifest,
        first: int,
        last: int,
        *,
        can_trim: bool,
        is_exact: bool,
        kv_positions: int,
        spend: Callable[[int], None],
    ) -> None:
        stages = manifest.stages[first : last + 1]
        start = stages[0].start
        self.facts = StageFacts(
            digests=tuple(stage.digest for stage in stages),
            boundaries=(start, *(stage.stop for stage in stages)),
            num_layers=manifest.num_layers,
            config_digest=manifest.config_digest,
            graph_hash=_digest("graph"),
            dtype="F32",
            hidden_size=1,
            vocab_size=VOCAB_SIZE,
            crossings_in=() if not start else (Crossing(name=f"layer.{start - 1}", dtype="I64", shape=("B", "L", 1)),),
        )
        self.can_trim = can_trim
        self.rewind_limit = CONTEXT if can_trim else 0
        self.kv_budget_bytes = self.kv_bytes(kv_positions)
        self._is_exact = is_exact
        self._spend = spend
        is_old = manifest != manifest_of(tuple(stage.stop for stage in manifest.stages))
        self._first_layer = start if not is_old else start + 1000  # other weights

    def kv_bytes(self, num_positions: int, /) -> int:
        return KV_BYTES * num_positions * (self.facts.stop - self.facts.start)

    def new_session(self, *, context: int, parameters: SamplingParameters) -> HashSession:
        return HashSession(self, context=context, parameters=parameters)

    def advance(
        self,
        sessions: Sequence[HashSession],
        ids: np.ndarray[Any, np.dtype[np.int32]],
        incoming: Mapping[str, RawTensor],
        *,
        draw: Sequence[bool],
        verify: bool = False,
        masks: Sequence[bytes | None] = (),
        targets: Sequence[Sequence[int]] = (),
    ) -> Advanced:
        rows: list[list[int]] = ids.tolist()
        length = len(rows[0])
        if self.facts.start:
            (tensor,) = incoming.values()
            values = np.frombuffer(tensor.data, np.int64).reshape(len(rows), length).tolist()
        else:
            values = [[arithmetic.embedding(token) for token in row] for row in rows]
        outputs = [
            self._forward(session, row, given) for session, row, given in zip(sessions, rows, values, strict=True)
        ]
        self._spend(ids.size)  # a step that breaks leaves its sessions with half of it
        for session, row in zip(sessions, rows, strict=True):
            session.ids.extend(row)
        if self.facts.stop < self.facts.num_layers:
            data = np.asarray(outputs, np.int64).tobytes()
            raw = RawTensor(dtype="I64", shape=(len(rows), length, 1), data=data)
            return Advanced(crossings={f"layer.{self.facts.stop - 1}": raw}, drawn=(Drawn(),) * len(rows))
        drawn = tuple(
            self._draw(
                session,
                outputs[at],
                rows[at],
                draws=draw[at],
                verify=verify,
                mask=masks[at] if masks else None,
                targets=targets[at] if targets else (),
            )
            for at, session in enumerate(sessions)
        )
        return Advanced(crossings={}, drawn=drawn)

    def _forward(self, session: HashSession, row: Sequence[int], values: Sequence[int]) -> list[int]:
        start, length = (session.position, len(row)) if self._is_exact else (0, 0)
        outputs = []
        for value in values:
            for index, layer in enumerate(session.layers, start=self._first_layer):
                value = layer.forward(index, value, start=start, length=length)
            outputs.append(value)
        return outputs

    def _draw(
        self,
        session: HashSession,
        outputs: Sequence[int],
        row: Sequence[int],
        *,
        draws: bool,
        verify: bool,
        mask: bytes | None,
        targets: Sequence[int],
    ) -> Drawn:
        likely = tuple(arithmetic.logprob(output, target) for output, target in zip(outputs, targets, strict=False))
        if not draws:
            return Drawn(target_logprobs=likely)
        first = 0 if verify else len(row) - 1
        before = session.ids[: session.position - len(row)]
        tokens: list[int] = []
        logprobs: list[float] = []
        for at in range(first, len(row)):
            token = arithmetic.draw(outputs[at], [*before, *row[: at + 1]], session.parameters, mask)
            tokens.append(token)
            logprobs.append(arithmetic.logprob(outputs[at], token))
            if at + 1 < len(row) and row[at + 1] != token:
                break
        return Drawn(tokens=tuple(tokens), logprobs=tuple(logprobs), target_logprobs=likely)


class Processor:
    """Runs an engine's jobs one at a time on the event loop, in the order of a compute thread.

    A job happens at once, on a clock that is set forward by what it takes; its future is done that much later.

    Args:
        clock: The host's.
        idle: Called about every second between jobs.
    """

    def __init__(self, clock: HostClock, *, idle: Callable[[], object] = lambda: None) -> None:
        self._clock = clock
        self._jobs = JobQueues()
        self._idle = idle
        self._idle_at = clock.now() + _IDLE_S
        self._busy_since: float | None = None
        self._is_closed = False
        self.num_done = 0
        clock.call_later(_IDLE_S, self._tick)

    @property
    def num_queued(self) -> int:
        return len(self._jobs)

    @property
    def busy_s(self) -> float:
        return 0.0 if self._busy_since is None else self._clock.now() - self._busy_since

    def control(self, run: Callable[[], T]) -> Future[T]:
        job = Job(run, is_control=True)
        self._check_open()
        self._jobs.put_control(job)
        self._go_on()
        return job.future

    def submit(
        self, owner: Hashable, run: Callable[[], T], *, cost: float, limit: int, queue: Hashable = None
    ) -> Future[T]:
        job = Job(run, cost)
        self._check_open()
        self._jobs.put(owner, job, limit=limit, queue=queue)
        self._go_on()
        return job.future

    def close(self) -> None:
        self._is_closed = True
        for job in self._jobs.clear():
            job.future.cancel()

    def _check_open(self) -> None:
        if self._is_closed:
            raise Overloaded("The node is shutting down.", hint="Try another node.")

    def _tick(self) -> None:
        if not self._is_closed:
            self._clock.call_later(_IDLE_S, self._tick)
            if self._busy_since is None:
                self._rest()

    def _rest(self) -> None:
        if not self._jobs.has_control and self._clock.now() >= self._idle_at:
            self._idle()
            self._idle_at = self._clock.now() + _IDLE_S

    def _go_on(self) -> None:
        if self._busy_since is None:
            self._busy_since = self._clock.now()
            self._clock.call_later(0.0, self._run)

    def _run(self) -> None:
        """Run the next job; jobs that arrive meanwhile wait."""
        job = self._jobs.pop()
        if job is None or self._is_closed:
            self._busy_since = None
            return
        assert job.is_control or not self._jobs.has_control, "a step runs before a fence that came before it runs"
        self._busy_since = self._clock.now()
        if not job.future.set_running_or_notify_cancel():
            self._run()
            return
        result, failure = None, None
        try:
            result = job.run()
        except Exception as error:  # noqa: BLE001 - any error goes to whoever awaits the job
            failure = error
        if seconds := self._clock.take_spent():
            self._clock.call_later(seconds, partial(self._done, job.future, result, failure))
        else:
            self._done(job.future, result, failure)

    def _done(self, future: Future[Any], result: object, failure: Exception | None) -> None:
        self.num_done += 1
        self._busy_since = None
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(result)
        if self._busy_since is None:
            self._rest()
            self._go_on()


def broken() -> NodeFailure:
    """The error of a step that a fault breaks."""
    return NodeFailure("A stage failed while it ran a step.", why="A fault of the simulation.")
