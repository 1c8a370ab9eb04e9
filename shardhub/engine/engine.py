"""The engine: sessions and steps of one stage, run in its compute thread, called from anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from shardhub.engine.compute import ComputeThread
from shardhub.engine.sessions import SessionTable
from shardhub.errors import NodeFailure, ShardhubError, StepTimeout, WireError
from shardhub.model.load import LoadedStage, load_stage
from shardhub.model.session import Advanced, Session
from shardhub.parameters import SamplingParameters
from shardhub.protocol import (
    Limits,
    NextHop,
    Opened,
    OpenSession,
    RowResult,
    StageFacts,
    Step,
    StepFailure,
    StepResult,
    new_id,
)
from shardhub.shard import Shard
from shardhub.tensors import DTYPE_SIZES, RawTensor

# Largest chunk of a prompt in one step: enough to keep matmuls busy, small enough that other sessions' decode steps
# wait for one chunk only.
MAX_CHUNK = 512
# Steps and bytes queued for one head.
QUEUE_STEPS = 32
QUEUE_BYTES = 256 << 20
LEASE_S = 30.0
# Room in a message for everything that is not a tensor.
MESSAGE_OVERHEAD_BYTES = 64 << 10
# Prefill chunk the warm-up runs, so that MLX has compiled its kernels before the first request.
_WARM_CHUNK = 8
# Parallel sessions a node admits unless told otherwise.
MAX_SESSIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How an engine is to run.

    Attributes:
        context: Most positions of a session.
        max_sessions: Sessions at once.
        budget_bytes: Memory to stay within; None asks the machine.
        lease_s: See `Limits`.
        max_chunk: Most ids of a row in one step.
    """

    context: int
    max_sessions: int = MAX_SESSIONS
    budget_bytes: int | None = None
    lease_s: float = LEASE_S
    max_chunk: int = MAX_CHUNK


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A step that ran.

    Attributes:
        output: The step for the next stage, or the result for the head.
        next_hop: Where it goes.
    """

    output: Step | StepResult
    next_hop: NextHop


class Engine:
    """Runs one stage. Make it with `Engine.start`."""

    def __init__(
        self, compute: ComputeThread, loaded: LoadedStage, settings: EngineSettings, largest_message: int
    ) -> None:
        self._compute = compute
        self._stage = loaded.stage
        self.facts: StageFacts = loaded.facts
        self.weight_bytes = loaded.weight_bytes
        self.kv_budget_bytes = loaded.kv_budget_bytes
        self.boot_id = new_id()
        self.limits = Limits(
            max_chunk=settings.max_chunk,
            max_rows=1,
            queue_steps=QUEUE_STEPS,
            queue_bytes=QUEUE_BYTES,
            max_context=settings.context,
            max_sessions=settings.max_sessions,
            lease_s=settings.lease_s,
            message_bytes=largest_message,
        )
        self._sessions = SessionTable(
            make=lambda call: Session(loaded.stage, context=call.context, parameters=call.parameters),
            kv_bytes=loaded.kv_bytes,
            kv_budget_bytes=loaded.kv_budget_bytes,
            limits=self.limits,
            boot_id=self.boot_id,
        )

    @classmethod
    def start(
        cls, shards: Sequence[Shard], settings: EngineSettings, *, progress: Callable[[str], None] = lambda _: None
    ) -> Engine:
        """Load shards as one stage in a compute thread of its own, and warm it up.

        Raises:
            ShardhubError: As `load_stage`.
        """
        engine: Engine | None = None

        def expire() -> None:
            if engine is not None:
                engine._sessions.expire()

        compute = ComputeThread(idle=expire)

        def load() -> LoadedStage:
            return load_stage(shards, context=settings.context, budget_bytes=settings.budget_bytes, progress=progress)

        try:
            largest = message_bytes(shards, context=settings.context, max_chunk=settings.max_chunk)
            engine = cls(compute, compute.control(load).result(), settings, largest)
            progress("warming up")
            compute.control(engine._warm_up).result()
        except BaseException:
            compute.close()
            raise
        return engine

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    @property
    def reserved_bytes(self) -> int:
        """KV bytes promised to sessions."""
        return self._sessions.reserved_bytes

    @property
    def num_done(self) -> int:
        """Jobs the compute thread has ended: progress."""
        return self._compute.num_done

    def open(self, call: OpenSession) -> Future[Opened]:
        """Open a session or fence an older epoch of it; waits for the step that runs, goes before those queued."""
        return self._compute.control(lambda: self._sessions.open(call))

    def close_session(self, head: bytes, session: bytes, epoch: int) -> Future[None]:
        """End a session and free its KV."""
        return self._compute.control(lambda: self._sessions.close(head, session, epoch))

    def renew(self, head: bytes, sessions: Sequence[bytes]) -> Future[list[bytes]]:
        """Extend leases; the result names the sessions that are not here any more."""
        return self._compute.control(lambda: self._sessions.renew(head, sessions))

    def step(self, head: bytes, step: Step) -> Future[Ran | StepFailure]:
        """Queue a step.

        The future never fails: what goes wrong is a `StepFailure` for the head. A step that was refused has changed
        nothing; one that broke while it ran has ended its sessions.
        """
        try:
            cost = float(step.length * len(step.rows))
            return self._compute.submit(head, lambda: self._run(head, step), cost=cost, limit=self.limits.queue_steps)
        except ShardhubError as error:
            failed: Future[Ran | StepFailure] = Future()
            failed.set_result(StepFailure(rows=step.rows, error=error))
            return failed

    def stop(self) -> None:
        """End the compute thread; sessions and weights are freed with the engine."""
        self._compute.close()

    def _run(self, head: bytes, step: Step) -> Ran | StepFailure:
        try:
            self._check(step)
            row = step.rows[0]
            entry = self._sessions.find(head, row, step.length)
        except ShardhubError as error:
            return StepFailure(rows=step.rows, error=error)
        try:
            advanced = entry.session.advance(step.ids, step.crossings, sample_token=row.sample)
        except (ShardhubError, RuntimeError, ValueError, MemoryError) as error:
            # The caches may have advanced in part: a replay under a new epoch starts from nothing.
            self._sessions.drop(row.session)
            return StepFailure(rows=step.rows, error=_as_failure(error))
        self._sessions.touch(entry)
        return Ran(output=self._output(step, entry.session, advanced), next_hop=entry.next_hop)

    def _output(self, step: Step, session: Session, advanced: Advanced) -> Step | StepResult:
        if not self._stage.is_last:
            return replace(step, crossings=advanced.crossings)
        row = step.rows[0]
        result = RowResult(
            session=row.session,
            epoch=row.epoch,
            position=session.position,
            token=advanced.token,
            logprob=advanced.logprob,
        )
        return StepResult(rows=(result,), lane=step.lane)

    def _check(self, step: Step) -> None:
        """Refuse a step whose form is wrong before an array exists.

        Raises:
            StepTimeout: It came too late to be of use.
            WireError: Rows, ids or crossings are not what this stage takes.
        """
        if (late := time.monotonic() - step.deadline) > 0:
            raise StepTimeout(
                f"A step waited {late:.1f} s beyond its deadline.", why=f"Stage {self._range} had others before it."
            )
        if len(step.rows) != 1:
            raise WireError(f"A step of {len(step.rows)} rows came.", why=f"This node takes {self.limits.max_rows}.")
        if not 0 < step.length <= self.limits.max_chunk:
            raise WireError(f"A chunk of {step.length} ids came.", why=f"This node takes {self.limits.max_chunk}.")
        if len(step.ids) != 4 * step.length * len(step.rows):
            raise WireError(f"{len(step.ids)} bytes of ids came for {step.length} ids of {len(step.rows)} rows.")
        ids = np.frombuffer(step.ids, dtype=np.int32)
        if ids.min() < 0 or (self.facts.vocab_size and ids.max() >= self.facts.vocab_size):
            raise WireError(
                f"Token ids from {ids.min()} to {ids.max()} came.", why=f"The vocabulary has {self.facts.vocab_size}."
            )
        expected = {crossing.name: crossing for crossing in self.facts.crossings_in}
        if step.crossings.keys() != expected.keys():
            raise WireError(
                f"Stage {self._range} got the crossings {sorted(step.crossings)}.", why=f"It takes {sorted(expected)}."
            )
        total = step.rows[0].position + step.length
        for name, tensor in step.crossings.items():
            shape = expected[name].expected_shape(batch=len(step.rows), length=step.length, total=total)
            if tensor.dtype != expected[name].dtype or tensor.shape != shape:
                raise WireError(
                    f"Crossing {name} came as {tensor.dtype}{list(tensor.shape)}.",
                    why=f"Stage {self._range} takes {expected[name].dtype}{list(shape)}.",
                )
            if len(tensor.data) != DTYPE_SIZES[tensor.dtype] * int(np.prod(shape, dtype=np.int64)):
                raise WireError(f"Crossing {name} came with {len(tensor.data)} bytes for {list(shape)}.")

    @property
    def _range(self) -> str:
        return f"[{self.facts.start}, {self.facts.stop})"

    def _warm_up(self) -> None:
        """Run a chunk and two steps of a session, so that kernels are compiled and readiness is real."""
        context = _WARM_CHUNK + 2
        session = Session(self._stage, context=context, parameters=SamplingParameters())
        for length in (_WARM_CHUNK, 1, 1):
            incoming = {
                crossing.name: _zeros(
                    crossing.dtype,
                    crossing.expected_shape(batch=1, length=length, total=session.position + length),
                )
                for crossing in self.facts.crossings_in
            }
            ids = np.zeros(length, np.int32).tobytes()
            session.advance(ids, incoming, sample_token=length == 1)
        mx.clear_cache()


def message_bytes(shards: Sequence[Shard], *, context: int, max_chunk: int = MAX_CHUNK) -> int:
    """Largest message of a link into or out of these shards: a full chunk's ids and crossings, and some room."""
    largest = 0
    for shard in shards:
        for crossings in (shard.stage.crossings_in, shard.stage.crossings_out):
            size = 4 * max_chunk
            for crossing in crossings:
                shape = crossing.expected_shape(batch=1, length=max_chunk, total=context)
                size += DTYPE_SIZES[crossing.dtype] * int(np.prod(shape, dtype=np.int64))
            largest = max(largest, size)
    return largest + MESSAGE_OVERHEAD_BYTES


def _zeros(dtype: str, shape: tuple[int, ...]) -> RawTensor:
    return RawTensor(dtype=dtype, shape=shape, data=bytes(DTYPE_SIZES[dtype] * int(np.prod(shape, dtype=np.int64))))


def _as_failure(error: Exception) -> ShardhubError:
    if isinstance(error, ShardhubError):
        return error
    # The text of a foreign exception may hold paths; the class says enough to a peer, the node's log has the rest.
    return NodeFailure("A stage broke while it ran a step.", why=f"{type(error).__name__} in MLX; see the node's log.")
