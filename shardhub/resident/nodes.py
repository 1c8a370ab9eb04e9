"""The nodes of this machine: one process for each assignment, started, watched, started again, and ended."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import ResourceError, ShardhubError
from shardhub.manifest import encode
from shardhub.resident.deployments import Assignment, Deployment, Deployments
from shardhub.resident.hub_access import HubAccess
from shardhub.resident.processes import Launcher, RunningNode, shorten
from shardhub.resident.records import NodeRecord, NodeState, read_record
from shardhub.resident.restarts import Restarts

log = logging.getLogger(__name__)

# Between two looks at a process and its record.
_LOOK_S = 0.2
# Time for a node to finish its sessions; its own drain takes 30 s at most.
_END_S = 40.0
_DIGEST_CHARS = 12
_RECORD = ".json"
# See `NodeOrder.key`.
_KEY = re.compile(rf"(?P<pipeline>.+)\.\d+-\d+(\.\d+)?\.[0-9a-f]{{{_DIGEST_CHARS}}}")


class Phase(StrEnum):
    """What a resident does about a node.

    STARTING: its process fetches and loads the stage.
    READY: its process answers heads.
    WAITING: it ended, and is started again after a pause.
    STOPPED: it ended for a reason that stays; it is started again on a new order only.
    """

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOrder:
    """What one node is to serve: an assignment, with what its deployment says of it.

    Attributes:
        pipeline: Name of the deployment.
        shards: Numbers of the first and the last of the pipeline's shards that it takes.
        deployment: What all its nodes depend on: the deployment without counter, member and assignments.
    """

    pipeline: str
    assignment: Assignment
    shards: tuple[int, int]
    deployment: Deployment

    @property
    def key(self) -> str:
        """A name for files: of two orders that differ in anything a node depends on, the keys differ."""
        digest = hashlib.sha256(encode(self.deployment.model_copy(update={"hub": None}))).hexdigest()[:_DIGEST_CHARS]
        replica = f".{self.assignment.replica}" if self.assignment.replica else ""
        return f"{self.pipeline}.{self.assignment.start}-{self.assignment.stop}{replica}.{digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A node of this machine.

    Attributes:
        record: What its process says of itself; None before it began.
        failure: What it ended with last; None if it has not, or was killed.
        num_starts: How often it was started.
        pause_s: While it waits: until its next start.
    """

    order: NodeOrder
    phase: Phase
    record: NodeRecord | None = None
    failure: ShardhubError | None = None
    num_starts: int = 0
    pause_s: float = 0.0


def orders_for(deployments: Iterable[Deployment], machine: str) -> list[NodeOrder]:
    """What a machine is to serve, deployment by deployment."""
    return [
        NodeOrder(
            pipeline=deployment.name,
            assignment=assignment,
            shards=deployment.shards_of(assignment),
            deployment=_alone(deployment),
        )
        for deployment in deployments
        for assignment in deployment.of(machine)
    ]


def _alone(deployment: Deployment) -> Deployment:
    """What every node of a deployment depends on: who ordered it how often, and other machines, changes none."""
    same = {"counter": 1, "member": "any", "borders": (), "assignments": (), "placed": None}
    return deployment.model_copy(update=same)


class Nodes:
    """The nodes of this machine; `follow` begins and ends them as deployments order.

    Args:
        machine: This machine's name.
        folder: For records and logs; nothing else is in it.
        words: Makes the command of a node, without the program.
        launcher: Starts processes.
        clock: Time.
        hub: The Hub that a node fetches from; None for that of this machine's environment.
    """

    def __init__(
        self,
        machine: str,
        folder: Path,
        words: Callable[[NodeOrder], Sequence[str]],
        launcher: Launcher,
        clock: Clock = SYSTEM_CLOCK,
        *,
        hub: Callable[[NodeOrder], HubAccess | None] = lambda _: None,
    ) -> None:
        self._hub = hub
        self._machine = machine
        self._folder = folder
        self._words = words
        self._launcher = launcher
        self._clock = clock
        self._kept: dict[str, _KeptNode] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._followed: dict[str, tuple[int, str]] = {}
        self._watchers: list[Callable[[], None]] = []
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def watch(self, watcher: Callable[[], None]) -> None:
        """Have a function called whenever a status changes."""
        self._watchers.append(watcher)

    @property
    def statuses(self) -> list[NodeStatus]:
        """The nodes that are ordered, by pipeline and layers."""
        return [self._kept[key].status for key in sorted(self._kept)]

    @property
    def num_ending(self) -> int:
        """How many nodes finish their sessions."""
        return len(self._ending)

    def follow(self, deployments: Deployments) -> None:
        """Start and end nodes so that they are those that the deployments order for this machine.

        A node starts after the end of those that it replaces, which hold their memory until their sessions are over.
        One that ended for a reason that stays is started again if its pipeline has a newer order than it had then.
        Processes that an earlier resident left are taken over, or ended if nothing orders them any more.
        """
        orders = {order.key: order for order in orders_for(deployments, self._machine)}
        for path in sorted(self._folder.glob(f"*{_RECORD}")):
            key = path.name.removesuffix(_RECORD)
            if key in orders or key in self._kept or key in self._ending:
                continue
            record = read_record(path)
            if record is not None and (running := self._launcher.take_over(record)) is not None:
                log.info("ending %s, which nothing orders any more", key)
                self._begin_end(key, _end(running, self._clock))
            else:
                _forget(self._folder, key)
        for key in [key for key in self._kept if key not in orders]:
            self._begin_end(key, self._kept.pop(key).end())
        newest = deployments.orders()
        for key, order in orders.items():
            if key not in self._kept:
                node = _KeptNode(
                    order, self._folder, partial(self._start, order), self._launcher, self._clock, self._changed
                )
                self._kept[key] = node
                node.begin(after=self._ending.get(key), room=self._ends_of(order.pipeline))
            elif self._kept[key].status.phase is Phase.STOPPED and newest[order.pipeline] != self._followed.get(key):
                self._kept[key].begin(after=None)
            self._followed[key] = newest[order.pipeline]
        self._followed = {key: self._followed[key] for key in orders}
        self._changed()

    def _start(self, order: NodeOrder, *, record: Path, log: Path) -> RunningNode:
        return self._launcher.start(self._words(order), record=record, log=log, hub=self._hub(order))

    def shorten_logs(self) -> None:
        """Keep only the end of logs that have grown large."""
        for path in self._folder.glob("*.log"):
            shorten(path)

    async def close(self, *, end_nodes: bool) -> None:
        """End with all nodes, or leave them to serve on, until another resident finds them."""
        kept, self._kept = list(self._kept.values()), {}
        if end_nodes:
            await asyncio.gather(*(node.end() for node in kept))
        else:
            await asyncio.gather(*(node.leave() for node in kept))
            for task in self._ending.values():
                task.cancel()
        await asyncio.gather(*self._ending.values(), return_exceptions=True)

    def _ends_of(self, pipeline: str) -> list[asyncio.Task[None]]:
        """The ends of a pipeline's nodes that finish their sessions."""
        keys = {key: _KEY.fullmatch(key) for key in self._ending}
        return [self._ending[key] for key, parts in keys.items() if parts is not None and parts["pipeline"] == pipeline]

    def _begin_end(self, key: str, end: Coroutine[None, None, None]) -> None:
        task = self._ending[key] = asyncio.create_task(end)

        def ended(task: asyncio.Task[None]) -> None:
            if self._ending.get(key) is task:
                del self._ending[key]
            if key not in self._kept and not task.cancelled():
                _forget(self._folder, key)
            self._changed()

        task.add_done_callback(ended)

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()


class _KeptNode:
    """One node, from its order to its end."""

    def __init__(
        self,
        order: NodeOrder,
        folder: Path,
        start: Callable[..., RunningNode],
        launcher: Launcher,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self.status = NodeStatus(order=order, phase=Phase.STARTING)
        self._record = folder / f"{order.key}{_RECORD}"
        self._log = folder / f"{order.key}.log"
        self._start = start
        self._launcher = launcher
        self._clock = clock
        self._changed = changed
        self._running: RunningNode | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._room: Collection[asyncio.Task[None]] = ()

    def begin(self, *, after: asyncio.Task[None] | None, room: Collection[asyncio.Task[None]] = ()) -> None:
        """Begin to keep it running.

        Args:
            after: The end of an earlier process of the same order, which is waited for.
            room: Ends that are waited for before a process is started, because it needs their memory; one that runs
                already is taken over at once.
        """
        self._room = room
        self._keeping = asyncio.create_task(self._keep(after))

    async def leave(self) -> None:
        """Stop keeping it, and leave its process alone."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})

    async def end(self) -> None:
        """Stop keeping it, and end its process."""
        await self.leave()
        if self._running is not None:
            await _end(self._running, self._clock)

    async def _keep(self, after: asyncio.Task[None] | None) -> None:
        if after is not None:
            await asyncio.wait({after})
        restarts = Restarts()
        while True:
            try:
                ready_at = await self._run()
            except OSError as error:  # no process can be started, or its log cannot be written
                ready_at = None
                failure: ShardhubError | None = ResourceError(
                    f"The node {self.status.order.key} cannot be started.", why=f"{error.strerror or error}."
                )
            else:
                record = self.status.record
                failure = None if record is None or record.failure is None else record.failure.as_error()
            served_s = 0.0 if ready_at is None else self._clock.now() - ready_at
            pause_s = restarts.ended(failure, served_s=served_s)
            phase = Phase.STOPPED if pause_s is None else Phase.WAITING
            self._set(phase=phase, failure=failure, pause_s=pause_s or 0.0)
            log.warning("%s ended: %s", self.status.order.key, failure or "it crashed or was killed")
            if pause_s is None:
                return
            await self._clock.sleep(pause_s)

    async def _run(self) -> float | None:
        """Run a process to its end, or one that runs already; returns when it was ready, if it ever was."""
        ready_at = None
        known = read_record(self._record)
        self._running = self._launcher.take_over(known) if known is not None else None
        if self._running is not None:
            log.info("%s is taken over: process %d serves on", self.status.order.key, self._running.pid)
        else:
            if self._room:
                await asyncio.wait(self._room)
                self._room = ()
            self._running = self._start(record=self._record, log=self._log)
            self._set(phase=Phase.STARTING, record=None, num_starts=self.status.num_starts + 1)
        while True:
            is_over = not self._running.is_running
            record = read_record(self._record)
            if record is not None and record.pid == self._running.pid and record != self.status.record:
                is_ready = record.state is NodeState.READY
                ready_at = self._clock.now() if is_ready and ready_at is None else ready_at
                self._set(phase=Phase.READY if is_ready else Phase.STARTING, record=record)
            if is_over:
                self._running = None
                return ready_at
            await self._clock.sleep(_LOOK_S)

    def _set(self, **changes: Any) -> None:
        self.status = replace(self.status, **changes)
        self._changed()


async def _end(running: RunningNode, clock: Clock) -> None:
    """Ask a process to end, and kill it if it does not."""
    if running.is_running:
        running.end()
    until = clock.now() + _END_S
    while running.is_running:
        if clock.now() >= until:
            log.warning("process %d did not end within %.0f s, and is killed", running.pid, _END_S)
            running.kill()
            until = float("inf")
        await clock.sleep(_LOOK_S)


def _forget(folder: Path, key: str) -> None:
    """Remove a node's record; its log stays until the next one of that name."""
    (folder / f"{key}{_RECORD}").unlink(missing_ok=True)
