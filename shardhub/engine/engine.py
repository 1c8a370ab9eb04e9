"""The engine: sessions and steps of one stage, run in its compute thread, called from anywhere."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from shardhub.clock import SYSTEM_CLOCK, SYSTEM_DICE, Clock, Dice
from shardhub.engine.compute import ComputeThread, settle
from shardhub.engine.jobs import Compute
from shardhub.engine.masks import MaskTable
from shardhub.engine.meter import Meter
from shardhub.engine.sessions import Entry, SessionTable
from shardhub.engine.settings import MAX_CHUNK, EngineSettings
from shardhub.engine.stage import RunnableStage
from shardhub.errors import NodeFailure, ShardhubError, StepTimeout, WireError
from shardhub.limits import MAX_PADDING, MAX_SCORED, MESSAGE_OVERHEAD_BYTES
from shardhub.model.drawn import Advanced
from shardhub.model.stage_session import StageSession
from shardhub.protocol import (
    AS_PUBLISHED,
    COMPUTATION,
    ONE_AT_A_TIME,
    PROVEN_ANEW,
    Lane,
    Limits,
    Mask,
    NextHop,
    Opened,
    OpenSession,
    RowResult,
    StageFacts,
    StageTime,
    Step,
    StepFailure,
    StepResult,
)
from shardhub.seldom import Seldom
from shardhub.shard import Shard
from shardhub.tensors import DTYPE_SIZES

if TYPE_CHECKING:
    from shardhub.model.load import LoadedStage

log = logging.getLogger(__name__)

T = TypeVar("T")

# Most steps and bytes queued for one head.
QUEUE_STEPS = 32
QUEUE_BYTES = 256 << 20
# Assumed cost of a chunk's id and of a decode step before any was measured; weight of the newest measurement.
_UNKNOWN_ID_S = 0.01
_NEWEST = 0.3
_MAX_VOCAB = 1 << 22
_MASK_ROOM_BYTES = 256
# Most sessions in one step.
MAX_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A step that ran.

    Attributes:
        output: The step for the next stage, or the result for the head.
        next_hop: Where the output goes.
    """

    output: Step | StepResult
    next_hop: NextHop


class Engine:
    """Runs one stage; create one with `Engine.start`, or over another compute and stage.

    Args:
        compute: Runs all that touches the stage.
        stage: The stage.
        settings: What the node takes.
        largest_message: Bytes of the largest message; see `message_bytes`.
        clock, dice: Sources of time and randomness.
        release: Gives memory back to the system that a stopped engine has left unused.

    Attributes:
        release: As given.
        boot_id: Id of this run of the node.
    """

    def __init__(
        self,
        compute: Compute,
        stage: RunnableStage,
        settings: EngineSettings,
        largest_message: int,
        *,
        clock: Clock = SYSTEM_CLOCK,
        dice: Dice = SYSTEM_DICE,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._compute = compute
        self._stage = stage
        self._clock = clock
        self.release = release
        self.facts: StageFacts = stage.facts
        self.computation = AS_PUBLISHED if stage.is_published else PROVEN_ANEW
        self.batch_refusal = stage.batch_refusal
        self.weight_bytes = stage.weight_bytes
        self.kv_budget_bytes = stage.kv_budget_bytes
        self.boot_id = dice.new_id()
        self._id_s: dict[Lane, float] = {}
        self._queued: dict[Future[Ran | StepFailure], tuple[bytes, Step]] = {}
        self.meter = Meter()
        self._broken = Seldom(log, clock=clock.now)
        self.limits = Limits(
            max_chunk=settings.max_chunk,
            max_rows=min(MAX_ROWS, settings.max_sessions) if stage.batch_refusal is None else 1,
            queue_steps=QUEUE_STEPS,
            queue_bytes=QUEUE_BYTES,
            max_context=stage.context,
            max_sessions=settings.max_sessions,
            lease_s=settings.lease_s,
            message_bytes=largest_message,
            rewind_limit=min(stage.context, stage.rewind_limit),
        )
        # For each session, one for the step that runs and one for the next.
        self._masks = MaskTable(most=2 * settings.max_sessions, clock=clock.now)
        self._sessions = SessionTable(
            make=lambda call: self._stage.new_session(context=call.context, parameters=call.parameters),
            kv_bytes=stage.kv_bytes,
            kv_budget_bytes=stage.kv_budget_bytes,
            limits=self.limits,
            boot_id=self.boot_id,
            clock=clock.now,
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
                engine.expire()

        # Whoever runs stages without a model loads no MLX. The compute thread imports it: a thread keeps the state of
        # the functions that modules compile, and only the end of this thread is waited for.
        def load() -> tuple[LoadedStage, RunnableStage, Callable[[], None]]:
            from shardhub.engine.model_stage import ModelStage
            from shardhub.model.load import load_stage
            from shardhub.model.memory import release_unused

            loaded = load_stage(
                shards,
                context=settings.context,
                budget_bytes=settings.budget_bytes,
                kv=settings.kv,
                may_be_less=settings.may_be_less,
                progress=progress,
            )
            return loaded, ModelStage(loaded), release_unused

        def warm_up(loaded: LoadedStage, max_rows: int) -> None:
            from shardhub.engine import model_stage

            model_stage.warm_up(loaded.stage, loaded.trial, max_rows=max_rows)

        compute = ComputeThread(idle=expire, after=settle)
        try:
            loaded, stage, release = compute.control(load).result()
            largest = message_bytes(shards, context=loaded.context, max_chunk=settings.max_chunk)
            engine = cls(compute, stage, settings, largest, release=release)
            progress("warming up")
            max_rows = engine.limits.max_rows
            compute.control(lambda: warm_up(loaded, max_rows)).result()
        except BaseException:
            compute.close()
            raise
        return engine

    def expire(self) -> None:
        """End sessions whose lease has run out, and fail steps whose masks are late; called by the compute."""
        self._sessions.expire()
        self._masks.expire(self._sessions)

    @property
    def host_facts(self) -> dict[str, str]:
        """The stage's part of the facts about its machine: how it was proven, and why it takes one row per step."""
        facts = {COMPUTATION: self.computation}
        return facts if self.batch_refusal is None else {**facts, ONE_AT_A_TIME: self.batch_refusal}

    @property
    def num_sessions(self) -> int:
        """Number of sessions that take steps."""
        return len(self._sessions)

    def load(self) -> dict[str, float]:
        """Load figures of the stage: counters since it started, and gauges."""
        return self.meter.figures() | {
            "sessions": len(self._sessions),
            "parked_sessions": self._sessions.num_parked,
            "queued_steps": self._compute.num_queued,
            "busy_s": self._compute.busy_s,
            "kv_reserved_bytes": self._sessions.reserved_bytes,
            "kv_parked_bytes": self._sessions.parked_bytes,
            "kv_budget_bytes": self.kv_budget_bytes,
            "weight_bytes": self.weight_bytes,
        }

    @property
    def reserved_bytes(self) -> int:
        """KV bytes reserved for sessions."""
        return self._sessions.reserved_bytes

    @property
    def busy_s(self) -> float:
        """Seconds the current step has run; 0 between steps."""
        return self._compute.busy_s

    @property
    def num_done(self) -> int:
        """Number of jobs the compute thread has ended, as a measure of progress."""
        return self._compute.num_done

    def open(self, call: OpenSession) -> Future[Opened]:
        """Open a session or fence an older epoch of it, after the running step and before the queued ones."""
        return self._fence(call.head, lambda: self._sessions.open(call))

    def close_session(self, head: bytes, session: bytes, epoch: int, *, park: bool = False) -> Future[None]:
        """End a session and free its KV, or park it for forks until its memory is needed."""
        return self._fence(head, lambda: self._sessions.close(head, session, epoch, park=park))

    def renew(self, head: bytes, sessions: Sequence[bytes]) -> Future[list[bytes]]:
        """Extend leases; the result names the sessions that are no longer here."""
        return self._compute.control(lambda: self._sessions.renew(head, sessions))

    def step(self, head: bytes, step: Step) -> Future[Ran | StepFailure]:
        """Queue a step.

        The future never raises: an error becomes a `StepFailure` for the head. A refused step has changed nothing; a
        step that failed while it ran has ended its sessions. A step whose future is cancelled before it runs is
        dropped.
        """
        if self._is_last and any(row.masked for row in step.rows):
            done: Future[Ran | StepFailure] = Future()

            def ready(error: ShardhubError | None) -> None:
                if error is not None:
                    if done.set_running_or_notify_cancel():
                        done.set_result(self._failure(step, error))
                    return
                queued = self._submit(head, step)
                queued.add_done_callback(lambda ran: _hand_on(ran, done))
                done.add_done_callback(lambda ended: queued.cancel() if ended.cancelled() else None)

            self._masks.hold(head, step, ready)
            return done
        return self._submit(head, step)

    def mask(self, head: bytes, masks: Sequence[Mask]) -> None:
        """Accept masks for draws, and queue the steps that waited for them.

        Raises:
            WireError: A mask is longer than the vocabulary.
        """
        for mask in masks:
            if not 0 < len(mask.allowed) <= self._mask_bytes:
                raise WireError(
                    f"A mask has {len(mask.allowed)} bytes.", why=f"The vocabulary needs at most {self._mask_bytes}."
                )
        self._masks.put(head, masks)

    @property
    def _mask_bytes(self) -> int:
        # Vocabularies are padded on both sides of the wire; the largest known has 262,144 entries.
        return (self.facts.vocab_size or _MAX_VOCAB) // 8 + _MASK_ROOM_BYTES

    def _fence(self, head: bytes, run: Callable[[], T]) -> Future[T]:
        """Run a control job that may end sessions, and fail the head's queued steps that can run no more.

        They would fail when their turn comes, and until then take room from the steps that replace them.
        """

        def fence() -> T:
            result = run()
            for queued, (owner, step) in list(self._queued.items()):
                is_over = owner == head and any(self._sessions.is_over(head, row) for row in step.rows)
                if is_over and queued.set_running_or_notify_cancel():
                    queued.set_result(self._run(head, step, 0.0))
            return result

        return self._compute.control(fence)

    def _submit(self, head: bytes, step: Step) -> Future[Ran | StepFailure]:
        queued_at = self._clock.now()
        try:
            queued = self._compute.submit(
                head,
                lambda: self._run(head, step, self._clock.now() - queued_at),
                cost=self._expected_s(step),
                # A head gives up its steps when it loses a node, sends others, and may yet have to fence the first.
                limit=2 * self.limits.queue_steps,
                queue=step.lane,
            )
            self._queued[queued] = head, step
            queued.add_done_callback(lambda ended: self._queued.pop(ended, None))
            return queued
        except ShardhubError as error:
            failed: Future[Ran | StepFailure] = Future()
            failed.set_result(self._failure(step, error))
            return failed

    def _expected_s(self, step: Step) -> float:
        """Expected seconds of a step, from earlier ones; the heads' shares of the stage are measured in them."""
        known = self._id_s.get(step.lane)
        return (known or _UNKNOWN_ID_S) * (step.length if step.lane is Lane.PREFILL else 1)

    def _note_pace(self, step: Step, seconds: float) -> None:
        length = step.length if step.lane is Lane.PREFILL else 1
        known = self._id_s.get(step.lane, seconds / length)
        self._id_s[step.lane] = (1 - _NEWEST) * known + _NEWEST * seconds / length

    def stop(self) -> None:
        """End the compute thread and free sessions and weights."""
        self._compute.close()
        self._sessions.clear()
        vars(self).pop("_stage", None)  # nothing that uses it runs any more

    def _run(self, head: bytes, step: Step, wait_s: float) -> Ran | StepFailure:
        started = self._clock.now()
        try:
            self._check(step)
            entries = [self._sessions.find(head, row, step.length) for row in step.rows]
            hop = self._check_together(step, entries)
        except ShardhubError as error:
            return self._failure(step, error)
        sessions = [entry.session for entry in entries]
        ids = np.frombuffer(step.ids, dtype=np.int32).reshape(len(step.rows), step.length)
        try:
            for row, session in zip(step.rows, sessions, strict=True):
                if row.discard:
                    session.rewind(row.position)
            advanced = self._stage.advance(
                sessions,
                ids,
                step.crossings,
                draw=[row.sample for row in step.rows],
                verify=step.verify,
                masks=self._masks.take(head, step) if self._is_last else (),
                targets=[row.targets for row in step.rows] if self._is_last else (),
            )
        except Exception as error:  # noqa: BLE001 - whatever upstream raises, the head needs an answer
            # Some caches may have advanced: a replay under a new epoch starts from scratch.
            for row in step.rows:
                self._sessions.drop(row.session)
            if not isinstance(error, ShardhubError):
                self._broken.warn("a step failed while it ran", cause=error)
            return self._failure(step, _as_failure(error))
        for entry in entries:
            self._sessions.touch(entry)
        spent = StageTime(wait_s=wait_s, compute_s=self._clock.now() - started)
        self._note_pace(step, spent.compute_s)
        self.meter.ran(step, spent)
        return Ran(output=self._output(step, sessions, advanced, (*step.times, spent)), next_hop=hop)

    def _failure(self, step: Step, error: ShardhubError) -> StepFailure:
        self.meter.failed(error)
        return StepFailure(rows=step.rows, error=error)

    def _output(
        self, step: Step, sessions: Sequence[StageSession], advanced: Advanced, times: tuple[StageTime, ...]
    ) -> Step | StepResult:
        if not self._is_last:
            return replace(step, crossings=advanced.crossings, times=times)
        rows = tuple(
            RowResult(
                session=row.session,
                epoch=row.epoch,
                position=session.position,
                tokens=drawn.tokens,
                logprobs=drawn.logprobs,
                top=drawn.top,
                target_logprobs=drawn.target_logprobs,
                target_top=drawn.target_top,
            )
            for row, session, drawn in zip(step.rows, sessions, advanced.drawn, strict=True)
        )
        return StepResult(rows=rows, lane=step.lane, times=times)

    def _check_together(self, step: Step, entries: Sequence[Entry]) -> NextHop:
        """Check that rows can run in one step, and return their common next hop.

        Raises:
            WireError: Their next hops differ, a session occurs twice, or their lengths differ too much.
        """
        hop = entries[0].next_hop
        if len(entries) == 1:
            return hop
        if len({row.session for row in step.rows}) != len(entries) or any(entry.next_hop != hop for entry in entries):
            raise WireError("The rows of a step repeat a session, or have different next hops.")
        padded = len(entries) * (max(row.position for row in step.rows) + step.length)
        promised = sum(entry.session.context for entry in entries)
        if padded > promised * (1 + MAX_PADDING):
            raise WireError(
                f"A step holds {len(entries)} sessions of very different lengths.",
                why=f"Padded to one length they take {padded} positions, but {promised} were reserved for them.",
            )
        return hop

    def _check(self, step: Step) -> None:
        """Check the form of a step before any array is made.

        Raises:
            StepTimeout: Its deadline has passed.
            WireError: Its rows, ids or crossings are not those this stage takes.
        """
        if (late := self._clock.now() - step.deadline) > 0:
            raise StepTimeout(
                f"A step waited {late:.1f} s beyond its deadline.",
                why=f"Stage {self._range} was busy with other steps.",
            )
        if not 0 < len(step.rows) <= self.limits.max_rows:
            raise WireError(
                f"A step has {len(step.rows)} rows.", why=f"This node accepts at most {self.limits.max_rows}."
            )
        if not 0 < step.length <= self.limits.max_chunk:
            raise WireError(
                f"A step has chunks of {step.length} ids.", why=f"This node accepts at most {self.limits.max_chunk}."
            )
        if len(step.ids) != 4 * step.length * len(step.rows):
            raise WireError(
                f"A step has {len(step.ids)} bytes of ids for {step.length} ids in each of {len(step.rows)} rows."
            )
        # A decode step has few ids: numpy would take 20 microseconds for each of the two.
        ids = memoryview(step.ids).cast("i")
        smallest, largest_id = min(ids), max(ids)
        if smallest < 0 or (self.facts.vocab_size and largest_id >= self.facts.vocab_size):
            raise WireError(
                f"A step has token ids from {smallest} to {largest_id}.",
                why=f"The vocabulary has {self.facts.vocab_size} ids.",
            )
        self._check_targets(step)
        expected = {crossing.name: crossing for crossing in self.facts.crossings_in}
        needed = {name for name, crossing in expected.items() if not crossing.may_be_left_out}
        if not needed <= step.crossings.keys() <= expected.keys():
            raise WireError(
                f"Stage {self._range} received the crossings {sorted(step.crossings)}.",
                why=f"It expects {sorted(expected)}.",
            )
        total = max(row.position for row in step.rows) + step.length
        for name, tensor in step.crossings.items():
            crossing, batch = expected[name], len(step.rows)
            if tensor.dtype != crossing.dtype or not crossing.admits(
                tensor.shape, batch=batch, length=step.length, total=total
            ):
                largest = crossing.expected_shape(batch=batch, length=step.length, total=total)
                raise WireError(
                    f"Crossing {name} has the form {tensor.dtype}{list(tensor.shape)}.",
                    why=f"Stage {self._range} expects {crossing.dtype}{list(largest)}.",
                )
            if len(tensor.data) != DTYPE_SIZES[tensor.dtype] * math.prod(tensor.shape):
                raise WireError(f"Crossing {name} has {len(tensor.data)} bytes for the shape {list(tensor.shape)}.")

    def _check_targets(self, step: Step) -> None:
        for row in step.rows:
            if not row.targets:
                continue
            if len(row.targets) != step.length or step.length > MAX_SCORED:
                raise WireError(
                    f"A row has {len(row.targets)} targets for {step.length} ids.",
                    why=f"At most {MAX_SCORED} can be scored.",
                )
            if self.facts.vocab_size and max(row.targets) >= self.facts.vocab_size:
                raise WireError(f"The target {max(row.targets)} is not in the vocabulary.")

    @property
    def _is_last(self) -> bool:
        return self.facts.stop == self.facts.num_layers

    @property
    def _range(self) -> str:
        return f"[{self.facts.start}, {self.facts.stop})"


def _hand_on(ran: Future[Ran | StepFailure], done: Future[Ran | StepFailure]) -> None:
    if ran.cancelled():
        done.cancel()
    elif done.set_running_or_notify_cancel():
        done.set_result(ran.result())


def message_bytes(shards: Sequence[Shard], *, context: int, max_chunk: int = MAX_CHUNK) -> int:
    """Size of the largest message on a link to or from these shards: a full chunk's ids and crossings, and a margin."""
    largest = 0
    for shard in shards:
        for crossings in (shard.stage.crossings_in, shard.stage.crossings_out):
            size = 4 * max_chunk
            for crossing in crossings:
                shape = crossing.expected_shape(batch=1, length=max_chunk, total=context)
                size += DTYPE_SIZES[crossing.dtype] * int(np.prod(shape, dtype=np.int64))
            largest = max(largest, size)
    return largest + MESSAGE_OVERHEAD_BYTES


def _as_failure(error: Exception) -> ShardhubError:
    if isinstance(error, ShardhubError):
        return error
    # The text of a foreign exception may hold paths: the peer gets its class only, and the node's log has the rest.
    return NodeFailure("A stage failed while it ran a step.", why=f"{type(error).__name__} in MLX; see the node's log.")
