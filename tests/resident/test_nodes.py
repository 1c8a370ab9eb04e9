"""The nodes of a machine, in real processes: started, killed, found again by another resident, and ended."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest

from shardhub.errors import AccessError, UsageError
from shardhub.resident.deployments import Assignment, Deployment, Deployments
from shardhub.resident.nodes import Nodes, Phase, orders_for
from shardhub.resident.processes import SystemLauncher
from shardhub.resident.records import Failure, NodeRecord, NodeState, write_record
from tests import cut
from tests.nodes import START_TIMEOUT_S
from tests.security.loop import in_loop
from tests.virtual import VirtualClock
from tests.waiting import until

in_patient_loop = partial(in_loop, timeout_s=300)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resident")
    return cut.cut(cut.tiny_model(folder / "model"), folder / "out", (3,))


def deployed(place, *, counter: int = 1, machine: str = "mini", context: int | None = 64) -> Deployment:
    """The second of two stages on this machine, and the first on another."""
    return Deployment(
        name="pipe",
        counter=counter,
        member="studio",
        pipeline_id="a" * 64,
        place=str(place),
        capacity={"context": context},
        assignments=(
            Assignment(machine="box", start=0, stop=3),
            Assignment(machine=machine, start=3, stop=6),
        ),
    )


def ordered(*given: Deployment) -> Deployments:
    """What a resident knows that has heard these."""
    deployments = Deployments()
    for each in given:
        deployments.take(each)
    return deployments


def serve(order) -> list[str]:
    options = ["--stages", "1", "--port", "0", "--context", str(order.deployment.capacity.context), "--no-share"]
    return ["serve", order.deployment.place, *options]


def test_a_node_depends_on_its_own_stage_only(tmp_path):
    """Another counter or member, and other machines' layers, start no node again; another context does."""
    first = deployed(tmp_path)
    again = first.model_copy(update={"counter": 7, "member": "box"})
    moved = first.model_copy(update={"assignments": (*first.assignments[1:],)})
    (key,) = [order.key for order in orders_for([first], "mini")]
    assert [order.key for order in orders_for([again], "mini")] == [key]
    assert [order.key for order in orders_for([moved], "mini")] == [key]
    assert [order.key for order in orders_for([deployed(tmp_path, context=32)], "mini")] != [key]
    assert orders_for([first], "studio") == []


class Process:
    """A process of the launcher below, which ends when a test says so."""

    pid = 1

    def __init__(self, words: list[str]) -> None:
        self.words, self.is_running, self.is_asked = words, True, False

    def end(self) -> None:
        self.is_asked = True

    def kill(self) -> None:
        self.is_running = False


class Launching:
    """Starts processes that hold their memory until a test ends them."""

    def __init__(self) -> None:
        self.started: list[Process] = []

    def start(self, words, *, record, log, hub=None) -> Process:
        self.started.append(Process(words))
        return self.started[-1]

    def take_over(self, record) -> Process | None:
        return None

    @property
    def contexts(self) -> list[str]:
        """Contexts of the nodes that run, which tell them apart."""
        return [each.words[each.words.index("--context") + 1] for each in self.started if each.is_running]


@in_loop
async def test_a_node_waits_for_the_memory_of_the_one_that_it_replaces(tmp_path):
    """The old one finishes its sessions first; a node of another pipeline, and one beside the old one, do not wait."""
    clock, launcher = VirtualClock(), Launching()
    nodes = Nodes("mini", tmp_path, serve, launcher, clock)
    first = deployed(tmp_path)
    nodes.follow(ordered(first))
    await clock.advance(1.0)
    other = deployed(tmp_path, context=16).model_copy(update={"name": "pipe.0-3"})
    nodes.follow(ordered(deployed(tmp_path, counter=2, context=32), other))
    await clock.advance(1.0)
    assert (launcher.contexts, launcher.started[0].is_asked) == (["64", "16"], True)
    launcher.started[0].is_running = False
    await clock.advance(1.0)
    assert launcher.contexts == ["16", "32"]
    healed = deployed(tmp_path, counter=3, context=32).model_copy(
        update={"assignments": tuple(Assignment(machine="mini", start=at, stop=at + 3) for at in (0, 3))}
    )
    nodes.follow(ordered(healed, other))
    await clock.advance(1.0)
    assert launcher.contexts == ["16", "32", "32"]
    await nodes.close(end_nodes=False)


@in_loop
async def test_a_newer_order_starts_a_stopped_node_again(tmp_path):
    """A node that ended for a reason that stays is started by the next order for its pipeline, and by nothing else."""
    clock, launcher = VirtualClock(), Launching()
    nodes = Nodes("mini", tmp_path, serve, launcher, clock)
    first = deployed(tmp_path)
    nodes.follow(ordered(first))
    await clock.advance(1.0)
    (order,) = orders_for([first], "mini")
    failure = Failure.of(AccessError("The repo is private.", hint="Set HF_TOKEN."))
    began = NodeRecord(pid=Process.pid, began_at=0.0, state=NodeState.FAILED, failure=failure)
    write_record(tmp_path / f"{order.key}.json", began)
    launcher.started[0].is_running = False
    await clock.advance(1.0)
    assert [status.phase for status in nodes.statuses] == [Phase.STOPPED]
    nodes.follow(ordered(first))
    await clock.advance(1.0)
    assert len(launcher.started) == 1
    nodes.follow(ordered(deployed(tmp_path, counter=2)))
    await clock.advance(1.0)
    assert (len(launcher.started), launcher.started[1].is_running) == (2, True)
    await nodes.close(end_nodes=False)


@in_patient_loop
async def test_a_node_is_kept_until_it_is_not_ordered(pipeline, tmp_path):
    """It is started, started again after a kill, found by the next resident, and ended with its order."""
    deployments = ordered(deployed(pipeline.folder))
    first = Nodes("mini", tmp_path / "nodes", serve, SystemLauncher())
    first.follow(deployments)

    async def is_ready(nodes: Nodes, pid: int = 0) -> bool:
        (status,) = nodes.statuses
        return status.phase is Phase.READY and status.record.pid != pid

    await until(lambda: is_ready(first), START_TIMEOUT_S)
    (status,) = first.statuses
    assert status.record.address.startswith("127.0.0.1:")
    killed = status.record.pid
    os.kill(killed, signal.SIGKILL)
    await until(lambda: is_ready(first, killed), START_TIMEOUT_S)
    (status,) = first.statuses
    assert (status.num_starts, status.failure) == (2, None)
    await first.close(end_nodes=False)

    second = Nodes("mini", tmp_path / "nodes", serve, SystemLauncher())
    second.follow(deployments)
    await until(lambda: is_ready(second))
    (again,) = second.statuses
    assert (again.num_starts, again.record) == (0, status.record)
    second.follow(ordered(deployed(pipeline.folder, counter=2, machine="laptop")))
    assert second.statuses == []
    await second.close(end_nodes=True)
    assert status.record.process is None
    assert list((tmp_path / "nodes").glob("*.json")) == []


@in_patient_loop
async def test_a_node_that_nothing_orders_any_more_is_ended(pipeline, tmp_path):
    """A resident that starts ends what an earlier one left, if the order was taken back meanwhile."""
    first = Nodes("mini", tmp_path / "nodes", serve, SystemLauncher())
    first.follow(ordered(deployed(pipeline.folder)))

    async def has_begun() -> bool:
        return first.statuses[0].record is not None

    await until(has_begun)
    record = first.statuses[0].record
    await first.close(end_nodes=False)
    second = Nodes("mini", tmp_path / "nodes", serve, SystemLauncher())
    second.follow(ordered())
    assert second.num_ending == 1
    await second.close(end_nodes=True)
    assert record.process is None


@in_patient_loop
async def test_a_start_that_cannot_succeed_is_not_repeated(tmp_path):
    """The error of the process is known to the resident, and its log has the text."""
    nodes = Nodes("mini", tmp_path / "nodes", serve, SystemLauncher())
    nodes.follow(ordered(deployed(tmp_path / "nowhere")))

    async def is_stopped() -> bool:
        return nodes.statuses[0].phase is Phase.STOPPED

    await until(is_stopped)
    (status,) = nodes.statuses
    assert isinstance(status.failure, UsageError)
    assert status.num_starts == 1
    (log,) = (tmp_path / "nodes").glob("*.log")
    assert status.failure.why in log.read_text()
    await nodes.close(end_nodes=True)
