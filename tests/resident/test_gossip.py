"""What residents tell each other: machines, and orders, until all know the same."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from shardhub.errors import Conflict, DiskFull, FormatError, ResourceError
from shardhub.manifest import decode, encode
from shardhub.placing.cluster import MAX_MACHINES
from shardhub.resident.deployments import HANDED_ON, Assignment, Deployment
from shardhub.resident.kept import ClusterFolder
from shardhub.resident.known import KnownMachines
from shardhub.resident.machine import (
    MAX_NODES,
    MAX_STATE_BYTES,
    Introduction,
    KnownMachine,
    MachineFacts,
    MachineState,
    NodeReport,
)
from shardhub.resident.nodes import Phase
from shardhub.resident.order import HandedDocument, Order
from shardhub.resident.records import Failure
from shardhub.shard import read_pipeline
from tests import cut
from tests.resident.network import Machine, Network
from tests.security.loop import in_loop
from tests.waiting import until


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gossip")
    return cut.cut(cut.tiny_model(folder / "model"), folder / "out", (3,))


def order(member: str, counter: int = 1, *, name: str = "pipe", machine: str = "mini", documents=(), **given) -> Order:
    """An order for one machine."""
    deployment = Deployment(
        name=name,
        counter=counter,
        member=member,
        assignments=(Assignment(machine=machine, start=0, stop=4),),
        **({"pipeline_id": "a" * 64, "place": "you/pipe@0123456"} | given),
    )
    return Order(deployment=deployment, documents=tuple(documents))


@asynccontextmanager
async def running(*machines: Machine, seeds: tuple[str, ...] = ()):
    """Start residents, and end them."""
    for machine in machines:
        machine.start(*seeds)
    try:
        yield
    finally:
        for machine in machines:
            if machine.is_up:
                await machine.stop()


def holds(condition):
    """A condition as `until` takes it."""

    async def holding() -> bool:
        return bool(condition())

    return holding


@in_loop
async def test_whoever_knows_one_machine_comes_to_know_all(tmp_path):
    """Of four machines each knows at most the first, and all reach all."""
    network = Network()
    machines = [Machine(network, tmp_path, name) for name in ("box", "mini", "studio", "tower")]
    async with running(*machines, seeds=("box:50047",)):
        names = {machine.name for machine in machines}
        await until(holds(lambda: all(machine.reached == names - {machine.name} for machine in machines)))
        links = {link.machine for link in machines[0].resident.facts.links}
        await until(holds(lambda: {link.machine for link in machines[0].resident.facts.links} == names - {"box"}))
        assert links <= names


@in_loop
async def test_of_two_orders_at_once_one_holds_whole_everywhere(tmp_path):
    """Two parts of a cluster that do not see each other take different orders; once they do, one holds on all."""
    network = Network()
    machines = [Machine(network, tmp_path, name) for name in ("box", "mini", "studio", "tower")]
    async with running(*machines, seeds=("box:50047",)):
        await until(holds(lambda: all(len(machine.reached) == 3 for machine in machines)))
        network.part(("box", "mini"), ("studio", "tower"))
        machines[0].resident.want(order("box", machine="mini"))
        machines[3].resident.want(order("tower", machine="studio"))
        await until(holds(lambda: machines[1].orders == {"pipe": (1, "box")}))
        await until(holds(lambda: machines[2].orders == {"pipe": (1, "tower")}))
        network.part()
        await until(holds(lambda: all(machine.orders == {"pipe": (1, "tower")} for machine in machines)))
        served = {machine.name for machine in machines if machine.resident.state.nodes}
        assert served == {"studio"}


@in_loop
async def test_a_machine_that_was_away_gets_what_it_missed(tmp_path):
    """Orders and machines are kept on disk, and newer ones come from any member."""
    network = Network()
    box, mini = (Machine(network, tmp_path, name) for name in ("box", "mini"))
    async with running(box, mini, seeds=("box:50047",)):
        box.resident.want(order("box"))
        await until(holds(lambda: [node.pipeline for node in box.known("mini").nodes] == ["pipe"]))
        await mini.stop()
        await until(holds(lambda: not box.reached))
        known = box.known("mini")
        assert (known.facts.name, [node.pipeline for node in known.nodes]) == ("mini", ["pipe"])
        assert "No node answers" in known.trouble
        box.resident.want(order("box", 2, machine="box"))
        mini.start()
        assert mini.orders == {"pipe": (1, "box")}
        await until(holds(lambda: mini.orders == {"pipe": (2, "box")} and box.reached == {"mini"}))


@in_loop
async def test_the_last_answer_of_a_machine_is_known_until_it_leaves(tmp_path):
    """Every answer counts; a machine that left is not seen any more."""
    network = Network()
    box, mini = (Machine(network, tmp_path, name) for name in ("box", "mini"))

    def answered_at() -> float:
        return next((each.answered_at or 0.0 for each in box.resident.sights if each.name == "mini"), 0.0)

    async with running(box, mini, seeds=("box:50047",)):
        await until(holds(lambda: box.reached == {"mini"}))
        first = answered_at()
        await until(holds(lambda: answered_at() > first > 0))
        await mini.stop()
        await until(holds(lambda: not box.reached))
        assert answered_at() > first
        box.resident.part(["mini"])
        assert [each.name for each in box.resident.sights] == ["box"]


@in_loop
async def test_orders_come_from_members_only(tmp_path):
    """What a machine of another role holds is not taken over; it takes and follows the orders of members."""
    network = Network()
    box, guest = Machine(network, tmp_path, "box"), Machine(network, tmp_path, "guest", role="node")
    async with running(box, guest, seeds=("box:50047", "guest:50047")):
        guest.resident.take(order("guest", name="own"))
        await until(holds(lambda: box.reached == {"guest"} and guest.reached == {"box"}))
        box.resident.want(order("box"))
        await until(holds(lambda: "pipe" in guest.orders))
        assert box.orders == {"pipe": (1, "box")}


@in_loop
async def test_documents_travel_with_an_order(pipeline, tmp_path):
    """A pipeline that is published nowhere is handed on, checked, and kept until it is not ordered any more."""
    folder = pipeline.folder
    shards = (folder.parent / place for place in ("m-shard-0", "m-shard-1"))
    files = [path for path in (*folder.iterdir(), *(shard / "stage.json" for shard in shards)) if path.is_file()]
    documents = [
        HandedDocument(name=path.relative_to(folder.parent).as_posix(), data=path.read_bytes()) for path in files
    ]
    outside = HandedDocument(name="../../escape", data=b"")
    given = {"pipeline_id": pipeline.manifest.pipeline_id, "place": HANDED_ON}
    network = Network()
    box, mini = (Machine(network, tmp_path, name) for name in ("box", "mini"))
    async with running(box, mini, seeds=("box:50047",)):
        with pytest.raises(FormatError, match="have 0 files"):
            box.resident.want(order("box", **given))
        with pytest.raises(FormatError, match="another pipeline"):
            box.resident.want(order("box", documents=documents, **(given | {"pipeline_id": "b" * 64})))
        with pytest.raises(FormatError, match="neither FILE nor"):
            box.resident.want(order("box", documents=(*documents, outside), **given))
        assert box.orders == {}
        box.resident.want(order("box", documents=documents, **given))
        await until(holds(lambda: "pipe" in mini.orders))
        kept = ClusterFolder(tmp_path / "mini").manifest_folder(pipeline.manifest.pipeline_id)
        assert read_pipeline(kept).manifest == pipeline.manifest
        assert len(list(kept.parent.glob("*/stage.json"))) == 2
        mini.resident.want(Order(deployment=Deployment(name="pipe", counter=2, member="mini")))
        await until(holds(lambda: box.orders == {"pipe": (2, "mini")}))
        assert not kept.exists()
        assert not box.resident.state.nodes


@in_loop
async def test_another_version_and_a_wrong_clock_are_said(tmp_path):
    """A person sees both, by the machine's name."""
    network = Network()
    box, mini = Machine(network, tmp_path, "box"), Machine(network, tmp_path, "mini", version="2")
    async with running(box, mini, seeds=("box:50047",)):
        await until(holds(lambda: box.reached == {"mini"}))
        assert box.resident.state.remarks == ("mini runs shardhub 2, and box 1.",)
        late = mini.resident.introduction()
        box.resident.introduce(late.model_copy(update={"at": late.at - 7200}))
        assert any("The clock of mini is 7200 s behind that of box" in remark for remark in box.resident.state.remarks)


@in_loop
async def test_what_anybody_suggests_is_bounded(tmp_path):
    """Ten thousand announced addresses are looked at a few at a time, and none becomes a machine by itself."""
    network = Network()
    box, mini = Machine(network, tmp_path, "box"), Machine(network, tmp_path, "mini")
    async with running(box, mini):
        box.resident.suggest([f"10.0.{at // 250}.{at % 250}:50047" for at in range(10_000)])
        await until(holds(lambda: not box.resident.num_suggested))
        assert box.resident.state.members == ()
        box.resident.suggest(["mini:50047", "box:50047"])
        await until(holds(lambda: box.reached == {"mini"}))


def test_an_order_that_cannot_be_kept_is_refused(tmp_path, monkeypatch):
    """On a full disk the order before stays, on disk and in memory."""
    folder = ClusterFolder(tmp_path)
    folder.keep(order("box"))

    def full(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shardhub.resident.kept.write_whole", full)
    with pytest.raises(DiskFull, match="the disk is full"):
        folder.keep(order("box", 2))
    monkeypatch.undo()
    assert folder.deployments().orders() == {"pipe": (1, "box")}


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    """The error names the folder."""
    (tmp_path / "cluster").write_text("")
    with pytest.raises(ResourceError, match="The state of this machine was not kept") as caught:
        ClusterFolder(tmp_path / "cluster")
    assert str(tmp_path / "cluster") in caught.value.why


def test_a_damaged_file_leaves_the_others(tmp_path):
    """An order that cannot be read is left out at a start, and comes again from others."""
    folder = ClusterFolder(tmp_path)
    folder.keep(order("box"))
    folder.keep(order("box", name="other"))
    (damaged,) = (tmp_path / "deployments").glob("other-*.json")
    damaged.write_bytes(b'{"kind"')
    assert folder.deployments().orders() == {"pipe": (1, "box")}


@in_loop
async def test_machines_that_left_are_forgotten_for_good(tmp_path):
    """All forget a machine that a member says has left, whatever it still says itself, and after a restart too."""
    network = Network()
    box, mini, studio = (Machine(network, tmp_path, name) for name in ("box", "mini", "studio"))
    async with running(box, mini, studio, seeds=("box:50047",)):
        await until(holds(lambda: all(len(machine.reached) == 2 for machine in (box, mini, studio))))
        box.resident.part(["mini"])
        await until(holds(lambda: box.reached == {"studio"} and studio.reached == {"box"}))
        said = mini.resident.introduction()
        box.resident.introduce(said)
        assert [member.name for member in box.resident.state.members] == ["studio"]
        await box.stop()
        box.start("mini:50047")
        await until(holds(lambda: box.reached == {"studio"}))
        assert [member.name for member in box.resident.state.members] == ["studio"]


@in_loop
async def test_a_machine_that_gives_no_orders_speaks_for_itself_only(tmp_path):
    """It can say that it has left, and not that others have."""
    network = Network()
    box, mini, guest = (
        Machine(network, tmp_path, name, role=role)
        for name, role in (("box", "member"), ("mini", "member"), ("guest", "node"))
    )
    async with running(box, mini, guest, seeds=("box:50047",)):
        await until(holds(lambda: all(len(machine.reached) == 2 for machine in (box, mini, guest))))
        said = guest.resident.introduction()
        box.resident.introduce(said.model_copy(update={"left": ("mini",)}))
        assert box.reached == {"guest", "mini"}
        box.resident.introduce(said.model_copy(update={"left": ("guest", "mini")}))
        await until(holds(lambda: box.reached == {"mini"} and mini.reached == {"box"}))


@in_loop
async def test_a_serve_only_machine_speaks_for_itself_only(tmp_path):
    """Names that it invents are not taken; those that a member names count in no majority until they are met."""
    network = Network()
    box, guest = Machine(network, tmp_path, "box"), Machine(network, tmp_path, "guest", role="node")
    invented = tuple(
        KnownMachine(name=f"invented-{at}", addresses=(f"10.0.0.{at}:50047",), seen_at=1.0) for at in range(100)
    )
    async with running(box, guest):
        said = guest.resident.introduction().model_copy(update={"members": invented})
        box.resident.introduce(said)
        assert [each.name for each in box.resident.state.members] == ["guest"]
        as_member = said.model_copy(update={"facts": said.facts.model_copy(update={"role": "member"})})
        box.resident.introduce(as_member)
        assert len(box.resident.state.members) == 101
        assert [sight.name for sight in box.resident.sights] == ["box", "guest"]
        assert [each.name for each in box.resident.introduction().members] == ["guest"]


def test_a_machine_that_was_only_named_is_dropped_after_a_while():
    """One that has spoken for itself stays, however long it is away."""
    known = KnownMachines("box")
    known.hear([KnownMachine(name="invented")], now=0.0)
    facts = MachineFacts(name="mini", boot_id="aa", shardhub="1")
    known.met(Introduction(at=0.0, facts=facts), ["mini:50047"], now=0.0)
    assert not known.drop_hearsay("invented", now=60.0)
    assert known.drop_hearsay("invented", now=3600.0)
    assert not known.drop_hearsay("mini", now=3600.0)
    assert [each.name for each in known] == ["mini"]


@in_loop
async def test_a_machine_that_refuses_an_order_is_not_lost(tmp_path, monkeypatch):
    """It stays reachable, and the refusal is a remark until it takes the order."""
    network = Network()
    box, mini = Machine(network, tmp_path, "box"), Machine(network, tmp_path, "mini")

    def full(folder: ClusterFolder, given: Order) -> None:
        if folder.path == tmp_path / "mini":
            raise DiskFull("It was not kept: the disk is full.")
        keep(folder, given)

    def refusals() -> list[str]:
        return [remark for remark in box.resident.state.remarks if "mini does not take the order for pipe" in remark]

    keep = ClusterFolder.keep
    monkeypatch.setattr(ClusterFolder, "keep", full)
    async with running(box, mini, seeds=("box:50047",)):
        box.resident.want(order("box"))
        await until(holds(refusals))
        await until(holds(lambda: box.reached == {"mini"}))
        monkeypatch.undo()
        await until(holds(lambda: "pipe" in mini.orders and not refusals()))
        assert box.reached == {"mini"}


@in_loop
async def test_the_largest_introductions_leave_a_state_that_commands_can_read(tmp_path):
    """A machine with the most nodes and texts is kept in short; one with more is refused; none of it is on the disk."""
    text = "x" * 2000
    failure = Failure(error=text, what=text, why=text, hint=text)
    node = NodeReport(pipeline="p", start=0, stop=1, phase=Phase.STOPPED, doing=text, failure=failure)
    network = Network()
    box = Machine(network, tmp_path, "box")
    async with running(box):
        for at in range(20):
            facts = MachineFacts(name=f"m{at}", boot_id="aa", shardhub="1")
            said = Introduction(at=0.0, facts=facts, nodes=(node,) * MAX_NODES)
            decode(Introduction, encode(said), where="m")
            box.resident.introduce(said)
        state = encode(box.resident.state)
        assert decode(MachineState, state, where="box", limit_bytes=MAX_STATE_BYTES).members[0].nodes
        # All machines that a cluster may have leave room.
        assert len(state) * MAX_MACHINES / 20 < MAX_STATE_BYTES
        assert not any(each.nodes for each in ClusterFolder(tmp_path / "box").members().members)
    with pytest.raises(ValueError, match="at most 64 items"):
        Introduction(at=0.0, facts=facts, nodes=(node,) * (MAX_NODES + 1))


@in_loop
async def test_two_orders_of_one_machine_with_one_number_conflict(tmp_path):
    """The second one is refused; the same order again changes nothing."""
    box = Machine(Network(), tmp_path, "box")
    async with running(box):
        box.resident.want(order("box", machine="mini"))
        box.resident.want(order("box", machine="mini"))
        with pytest.raises(Conflict, match="another one came first"):
            box.resident.want(order("box", machine="studio"))
        assert box.resident.state.orders[0].assignments[0].machine == "mini"


def test_texts_of_other_machines_do_not_steer_a_terminal():
    """Signs that are not printed are blanks, line ends too."""
    node = {"pipeline": "pipe", "start": 0, "stop": 1, "phase": Phase.STOPPED}
    hostile = "\x1b[2J\x9b2Jready\r\nbox$ \u202e"
    failure = Failure(error="UsageError", what=hostile)
    report = NodeReport(**node, doing=hostile, failure=failure)
    trouble = KnownMachine(name="mini", trouble=hostile).trouble
    assert report.doing == report.failure.what == trouble == " [2J 2Jready  box$  "


@pytest.mark.parametrize("address", ["a" * 255 + ":1", "mini:0", "mini:99999", "[::1:7000", "[fe80::1%\x1b[2J]:7000"])
def test_addresses_of_other_machines_are_addresses(address):
    """Any other text is refused where it comes in, also for a node."""
    with pytest.raises(ValueError, match="addresses"):
        KnownMachine(name="mini", addresses=(address,))
    with pytest.raises(ValueError, match="address"):
        NodeReport(pipeline="pipe", start=0, stop=1, phase=Phase.READY, address=address)


def test_orders_whose_names_differ_in_case_have_files_of_their_own(tmp_path):
    """On a disk that takes them for one name too; a file of an earlier version is read, and replaced."""
    folder = ClusterFolder(tmp_path)
    for name in ("pipe", "Pipe"):
        folder.keep(order("box", name=name))
    files = sorted(path.name.lower() for path in (tmp_path / "deployments").iterdir())
    assert len(set(files)) == 2
    old = tmp_path / "deployments" / "other.json"
    old.write_bytes(encode(order("box", name="other").deployment))
    assert set(folder.deployments().orders()) == {"pipe", "Pipe", "other"}
    folder.keep(order("box", 2, name="other"))
    assert not old.exists()
    assert folder.deployments().orders()["other"] == (2, "box")


def test_files_that_a_system_left_are_not_handed_on(pipeline, tmp_path):
    """A folder that somebody looked into has .DS_Store; the order is handed on without it."""
    files = [path for path in pipeline.folder.iterdir() if path.is_file()]
    documents = tuple(HandedDocument(name=f"m/{path.name}", data=path.read_bytes()) for path in files)
    given = order("box", documents=documents, pipeline_id=pipeline.manifest.pipeline_id, place=HANDED_ON)
    folder = ClusterFolder(tmp_path)
    folder.keep(given)
    (folder.manifest_folder(pipeline.manifest.pipeline_id) / ".DS_Store").write_bytes(b"x")
    assert {each.name for each in folder.order(given.deployment).documents} == {each.name for each in documents}
