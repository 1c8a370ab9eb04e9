"""A node of the simulation: a real servicer and a real engine, over a stage of hashes, on a host of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from shardhub.engine.engine import Engine, EngineSettings, Ran
from shardhub.node.servicer import StageServicer
from shardhub.protocol import Step, StepFailure
from shardhub.wire.shardhub_pb2_grpc import add_NodeServicer_to_server
from tests.memory_channel import MemoryServer
from tests.simulation.clock import HostClock, SeededDice
from tests.simulation.loop import Host, HostState, current_host
from tests.simulation.scenario import NodeSpec
from tests.simulation.stage import CONTEXT, MAX_CHUNK, HashStage, Processor, broken, manifest_of

if TYPE_CHECKING:
    from tests.simulation.world import World

MESSAGE_BYTES = 1 << 20
# Facts of a numeric class that all hosts share.
FACTS = {"mlx": "0", "backend": "cpu", "chip": "simulated", "cpu": "simulated", "os": "Linux", "blas": "none"}
# Seconds of a step beside its ids.
_STEP_S = 0.0005


class _WatchedEngine(Engine):
    """An engine that reports a step it must not run.

    Attributes:
        wrong: Called with what is wrong.
    """

    wrong: Callable[[str], None]

    def _run(self, head: bytes, step: Step, wait_s: float) -> Ran | StepFailure:
        entries = self._sessions._entries
        is_fenced = any(row.session in entries and entries[row.session].epoch != row.epoch for row in step.rows)
        outcome = super()._run(head, step, wait_s)
        if is_fenced and isinstance(outcome, Ran):
            self.wrong("a node ran a step of an epoch that was fenced")
        return outcome


class Node:
    """A machine on which processes serve a stage, one after the other.

    Attributes:
        index: Its index in the scenario.
        spec: What it serves.
        host: Its current or last process.
        address: Where it answers.
        slowness: By what its steps take longer.
        num_to_break: Steps that a fault breaks.
        num_run: Steps that ran, in all its processes.
    """

    def __init__(self, world: World, index: int, spec: NodeSpec) -> None:
        self.index = index
        self.spec = spec
        self.name = f"node {index}"
        self.host = Host(self.name, HostState.DEAD)
        self.address = f"10.0.0.{index + 1}:50051"
        self.slowness = 1.0
        self.num_to_break = 0
        self.num_run = 0
        self.engine: Engine | None = None
        self.servicer: StageServicer | None = None
        self.is_old = False
        self.is_draining = False
        self._world = world
        self._num_starts = 0
        self._budget = 0

    @property
    def is_up(self) -> bool:
        """Whether one of its processes serves."""
        return self.host.state is not HostState.DEAD

    def start(self, *, is_old: bool = False, moved: bool = False) -> None:
        """Start a process that serves the stage, with nothing in memory."""
        if self.is_up:
            return
        world, spec = self._world, self.spec
        self._num_starts += 1
        self.is_old, self.is_draining = is_old, False
        if moved:
            self.address = f"10.0.{self._num_starts}.{self.index + 1}:50051"
        self.host = host = Host(self.name)
        world.tell(f"{self.name} starts" + (" with an older pipeline" if is_old else f" at {self.address}"))
        before = current_host.set(host)
        try:
            clock = HostClock(world.loop, host)
            dice = SeededDice(random.Random(f"{world.scenario.seed} {self.name} {self._num_starts}"))
            stage = HashStage(
                world.scenario.manifest if not is_old else manifest_of(world.scenario.cuts, is_old=True),
                spec.first,
                spec.last,
                can_trim=world.scenario.can_trim,
                is_exact=world.scenario.chunk is not None,
                kv_positions=spec.kv_positions,
                spend=lambda num_ids: self._spend(clock, num_ids),
            )
            self._budget = stage.kv_budget_bytes
            self.stage = stage
            processor = Processor(clock, idle=lambda: engine.expire())
            settings = EngineSettings(
                context=CONTEXT,
                max_sessions=spec.max_sessions,
                lease_s=world.scenario.lease_s,
                max_chunk=MAX_CHUNK,
            )
            engine = _WatchedEngine(processor, stage, settings, MESSAGE_BYTES, clock=clock, dice=dice)
            self.engine = engine
            engine.wrong = world.wrong
            engine.limits = replace(engine.limits, queue_steps=world.scenario.queue_steps)
            self.servicer = servicer = StageServicer(
                advertise=(self.address,),
                host=FACTS,
                message_bytes=MESSAGE_BYTES,
                opener=world.network.opener(host),
                clock=clock,
            )
            servicer.serve(engine)
            server = MemoryServer(MESSAGE_BYTES)
            add_NodeServicer_to_server(servicer, server)
        finally:
            current_host.reset(before)
        world.network.listen(host, self.address, server)
        world.node_started(self)

    def kill(self, *, quietly: bool = False) -> None:
        """End its process as by SIGKILL."""
        if self.is_up:
            self._world.loop.kill(self.host)
            self._world.network.gone(self.host, quietly=quietly)

    def drain(self) -> None:
        """Accept no new sessions."""
        if self.is_up and self.servicer is not None:
            self.servicer.drain()
            self.is_draining = True

    def squeeze(self, *, is_short: bool) -> None:
        """Leave no room for further sessions, or restore it."""
        if self.engine is not None:
            self.engine._sessions._kv_budget_bytes = 0 if is_short else self._budget

    def lapse(self) -> None:
        """Expire all leases."""
        if self.engine is not None and self.is_up:
            for entry in self.engine._sessions._all():
                entry.lease_ends = self.engine._clock.now() - 1e-3
            self.engine.expire()  # a step that comes first would extend them

    def _spend(self, clock: HostClock, num_ids: int) -> None:
        self.num_run += 1
        clock.spend(self.slowness * (_STEP_S + self.spec.id_s * num_ids))
        if self.num_to_break:
            self.num_to_break -= 1
            raise broken()
