"""Residents in real processes, over real TLS: they meet, hand on orders, keep them, and keep their nodes."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from contextlib import suppress

import psutil
import pytest

from shardhub.address import Address
from shardhub.errors import (
    OUTCOMES,
    AccessError,
    AddressError,
    CertificateRefused,
    ChainError,
    Conflict,
    IdentityError,
    NodeUnreachable,
)
from shardhub.manifest import encode
from shardhub.resident.deployments import Assignment, Deployment
from shardhub.resident.link import GrpcResidents
from shardhub.resident.machine import Introduction, MachineFacts
from shardhub.resident.order import Order
from shardhub.resident.records import NodeRecord, read_record
from shardhub.security.certificates import LIFE, Role
from shardhub.security.identity import Identity
from shardhub.security.trust import Security, Trust
from shardhub.usecases.cluster import ClusterSettings, open_cluster
from shardhub.usecases.cluster_place import ClusterPlace
from shardhub.usecases.gauge import MEASURED_FILE
from shardhub.usecases.resident_process import resident_status, stop_resident
from tests import cut, nodes
from tests.residents import MEASURED, ResidentProcess, deployed, end_all, member, reached
from tests.security.cluster import NOW, Cluster
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resident")
    return cut.cut(cut.tiny_model(folder / "model"), folder / "out", (3,)).folder


def test_an_order_given_on_one_machine_is_followed_on_all(pipeline, tmp_path):
    """Three machines meet by one seed; an order given on one starts nodes on the others, whose addresses it shows."""
    cluster = Cluster(tmp_path / "cluster")
    studio = member(cluster, tmp_path, "studio", host="0.0.0.0").wait_ready()
    others = [member(cluster, tmp_path, name, seeds=(studio.address,), host="0.0.0.0") for name in ("mini", "box")]
    machines = [studio, *(other.wait_ready() for other in others)]
    try:
        with machines[1].cluster() as seen:
            wait_until(lambda: reached(seen.own().members) == {"studio", "box"})
            counter, name = seen.next_order("pipe")
            assert (counter, name) == (1, "mini")
            seen.want(deployed(pipeline, "studio", "box", by=name))
            wait_until(lambda: [each.is_ready for each in seen.pipelines()] == [True])
            (pipe,) = seen.pipelines()
            assert [node.machine for node in pipe.nodes] == ["studio", "box"]
            assert len(set(pipe.addresses)) == 2
            assert [machine.name for machine in seen.machines()] == ["box", "mini", "studio"]
            assert all(machine.is_reachable for machine in seen.machines())
            for states in seen.watch():
                assert [each.name for each in states] == ["box", "mini", "studio"]
                break
    finally:
        end_all(machines)


def deployed_anywhere() -> Deployment:
    """A deployment of a pipeline that does not exist."""
    assignment = Assignment(machine="studio", start=0, stop=1)
    return Deployment(
        name="pipe", counter=1, member="mini", pipeline_id="a" * 64, place="/nowhere", assignments=(assignment,)
    )


def introduction(name: str) -> Introduction:
    """What a machine of that name says of itself."""
    return Introduction(at=0.0, facts=MachineFacts(name=name, boot_id="aa", shardhub="1"))


def anonymous() -> ssl.SSLContext:
    """TLS without a certificate, and with any server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def certified(identity: Identity) -> ssl.SSLContext:
    """TLS with a certificate, and with any server."""
    context = anonymous()
    context.load_cert_chain(identity.path)
    return context


def records_of(resident: ResidentProcess) -> list[NodeRecord]:
    """What the processes of a resident's nodes say of themselves."""
    records = map(read_record, sorted(resident.place.folder.nodes.glob("*.json")))
    return [record for record in records if record is not None]


def test_nodes_outlive_their_resident(pipeline, tmp_path):
    """Killed, or ended for a restart, a resident leaves its nodes; the next one finds them, and starts none twice."""
    cluster = Cluster(tmp_path / "cluster")
    first = member(cluster, tmp_path, "studio").wait_ready()
    port = Address.parse(first.address).port
    current = first
    try:
        with first.cluster() as seen:
            seen.want(deployed(pipeline, "studio", ends=(6,)))
            wait_until(lambda: [each.is_ready for each in seen.pipelines()] == [True])
            addresses = seen.pipelines()[0].addresses
        running = records_of(first)
        first.kill()
        for is_last in (False, True):
            current = member(cluster, tmp_path, "studio", port=port).wait_ready()
            with current.cluster() as seen:
                wait_until(lambda: [each.is_ready for each in seen.pipelines()] == [True])
                (pipe,) = seen.pipelines()
                assert (pipe.addresses, pipe.nodes[0].report.num_starts) == (addresses, 0)
            assert records_of(current) == running
            if not is_last:
                current.stop()
        current.kill()
        assert stop_resident(current.place)
    finally:
        end_all([current])
    assert [record.process for record in running] == [None]


def test_only_members_give_orders(tmp_path):
    """A node's and a head's certificate may look; a stranger's is refused in the handshake; nothing is started."""
    cluster, other = Cluster(tmp_path / "cluster"), Cluster(tmp_path / "other")
    resident = member(cluster, tmp_path, "studio").wait_ready()
    order = Order(deployment=deployed_anywhere())

    async def try_as(trust: Trust) -> None:
        link = await GrpcResidents(Security(trust=trust, everywhere=True)).dial(resident.address)
        try:
            assert (await link.describe()).name == "studio"
            with pytest.raises(AccessError, match="Only a member may give orders"):
                await link.want(order)
            if trust.role is Role.HEAD:
                with pytest.raises(AccessError, match="Only a node may introduce itself"):
                    await link.introduce(introduction("mini"))
            else:
                with pytest.raises(AccessError, match="introduced itself as box"):
                    await link.introduce(introduction("box"))
        finally:
            await link.close()

    async def refused(security: Security) -> None:
        with pytest.raises((CertificateRefused, ChainError)):
            await GrpcResidents(security).dial(resident.address)

    async def run() -> None:
        for role in (Role.NODE, Role.HEAD):
            await try_as(cluster.trust("mini", role))
        await refused(Security(trust=other.trust("mini", Role.MEMBER), everywhere=True))
        await refused(Security())

    try:
        asyncio.run(run())
        with resident.cluster() as seen:
            state = seen.own()
        assert (state.nodes, state.orders, state.members) == ((), (), ())
    finally:
        end_all([resident])


def test_a_thousand_strangers_leave_a_resident_as_it_was(tmp_path):
    """Of connections without TLS, without a certificate and with another cluster's, none is admitted."""
    cluster, other = Cluster(tmp_path / "cluster"), Cluster(tmp_path / "other")
    resident = member(cluster, tmp_path, "studio").wait_ready()
    process = psutil.Process(resident.process.pid)
    at = Address.parse(resident.address)
    strange = other.trust("mini", Role.MEMBER).identity
    contexts = [None, anonymous(), certified(strange)]

    async def knock(context: ssl.SSLContext | None) -> bool:
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(at.host, at.port, ssl=context)
            try:
                writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
                await writer.drain()
                # A server that admits the caller sends its settings.
                return bool(await reader.read(1)) and context is not None
            finally:
                writer.transport.abort()
        return False

    async def knock_often(times: int) -> int:
        admitted = 0
        for _ in range(times // 50):
            admitted += sum(await asyncio.gather(*(knock(contexts[at % 3]) for at in range(50))))
        return admitted

    try:
        assert asyncio.run(knock_often(200)) == 0
        before = process.memory_info().rss
        assert asyncio.run(knock_often(1000)) == 0
        assert process.memory_info().rss - before < 8 << 20
        assert process.children() == []
        with resident.cluster() as seen:
            assert seen.own().members == ()
    finally:
        end_all([resident])


def test_a_second_resident_does_not_start(tmp_path):
    """It says that one runs, and how to end that."""
    cluster = Cluster(tmp_path / "cluster")
    resident = member(cluster, tmp_path, "studio").wait_ready()
    try:
        env = {"SHARDHUB_STATE": str(tmp_path / "studio"), "SHARDHUB_TLS": str(resident.place.tls)}
        done = nodes.shardhub("resident", "run", "--port", "0", env=env)
        assert done.returncode == OUTCOMES[Conflict].exit
        assert "shardhub resident stop" in done.stderr
        assert nodes.shardhub("resident", "status", env=env).returncode == 0
        assert nodes.shardhub("resident", "stop", env=env).returncode == 0
        assert resident.wait() == 0
        assert nodes.shardhub("resident", "status", env=env).returncode == 1
        assert not resident_status(resident.place).is_running
    finally:
        end_all([resident])


def test_a_resident_in_the_background_is_started_once(tmp_path):
    """A start that is repeated shows the same process; its log has its lines; an error is that of the command."""
    env = {"SHARDHUB_STATE": str(tmp_path), "SHARDHUB_TLS": ""}
    place = ClusterPlace(state=tmp_path)
    (place.folder.path / MEASURED_FILE).write_bytes(encode(MEASURED))

    def resident(*words: str) -> subprocess.CompletedProcess[str]:
        return nodes.shardhub("resident", *words, env=env)

    refused = resident("start", "--port", "0", "--host", "0.0.0.0")
    assert refused.returncode == OUTCOMES[AddressError].exit
    assert "--insecure-lan" in refused.stderr
    try:
        started = [json.loads(resident("start", "--port", "0", "--json").stdout) for _ in range(2)]
        assert started[0]["ready"]
        assert started[0]["pid"] == started[1]["pid"] == resident_status(place).pid
        assert started[0]["address"] in resident("logs").stdout
        with open_cluster(ClusterSettings(place=place)) as cluster:
            assert cluster.own().facts.read_bytes_per_s == MEASURED.read_bytes_per_s
    finally:
        assert "has ended" in resident("stop").stdout
    assert "No resident runs" in resident("stop").stdout
    with pytest.raises(NodeUnreachable, match="No resident runs"), open_cluster(ClusterSettings(place=place)):
        pass


def test_a_wrong_clock_is_said(tmp_path):
    """A machine whose certificate is not valid yet by its clock is told so, and so is whoever asks for its status."""
    cluster = Cluster(tmp_path / "cluster")
    tls = cluster.issue("studio", Role.MEMBER, now=NOW + 10 * LIFE)
    env = {"SHARDHUB_STATE": str(tmp_path / "studio"), "SHARDHUB_TLS": str(tls)}
    done = nodes.shardhub("resident", "run", "--port", "0", env=env)
    assert done.returncode == OUTCOMES[IdentityError].exit
    assert "Set this machine's clock" in done.stderr
    assert "Set this machine's clock" in nodes.shardhub("resident", "status", env=env).stderr
