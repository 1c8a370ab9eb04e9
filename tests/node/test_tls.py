"""Mutual TLS between heads and nodes over loopback: what is refused, when, and with which error."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os

os.environ.setdefault("SHARDHUB_BLAS", "reference")

import grpc
import grpc.aio
import pytest

from shardhub.chain.links import NodeLink, describe
from shardhub.engine.engine import Engine, EngineSettings
from shardhub.errors import (
    OUTCOMES,
    AccessError,
    AddressError,
    CertificateRefused,
    IdentityError,
    NodeLost,
    NodeUnreachable,
    ShardhubError,
)
from shardhub.node.peers import Peers
from shardhub.node.servicer import StageServicer
from shardhub.parameters import SamplingParameters
from shardhub.protocol import HopKind, Lane, NextHop, OpenSession, Row, Step, new_id
from shardhub.security.certificates import LIFE, Role
from shardhub.security.handshake import meet
from shardhub.security.trust import PLAIN, Security, Trust
from shardhub.wire import codec, secure
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.caller_check import CallerCheck
from shardhub.wire.options import client_options, server_options
from shardhub.wire.secure import channel_to, open_channel, server_credentials, trust_handler
from shardhub.wire.shardhub_pb2_grpc import NodeStub, add_NodeServicer_to_server
from tests import cut
from tests.security.cluster import NOW, Cluster
from tests.security.loop import in_loop

DAY = dt.timedelta(days=1)
OPTIONS = client_options(4 << 20)
HEARD_S = 30
CALLS = ["Describe", "Open", "Close", "Renew", "Probe"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The whole of a tiny model, in this process."""
    folder = tmp_path_factory.mktemp("tls")
    pipeline = cut.cut(cut.tiny_model(folder / "model"), folder / "out", (3,))
    started = Engine.start(cut.shards(pipeline, 0, 1), EngineSettings(context=64))
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def nobody_asks_again(monkeypatch):
    """Disable the periodic requests: revocations are passed on when they are received, or not at all."""
    monkeypatch.setattr(secure, "EXCHANGE_EVERY_S", 3600)


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path / "one")


@pytest.fixture
def node(cluster):
    return cluster.trust("mini", Role.NODE)


@pytest.fixture
def head(cluster):
    return cluster.trust("laptop", Role.HEAD)


class Counting(StageServicer):
    """A node's service that counts the calls that came through."""

    num_calls = 0

    async def Describe(self, request, context):
        Counting.num_calls += 1
        return await super().Describe(request, context)


@contextlib.asynccontextmanager
async def serving(engine, trust: Trust | None):
    """A node's service at an address, set up as by a node; without TLS if it has no trust."""
    callers = CallerCheck(trust) if trust else None
    server = grpc.aio.server(interceptors=[callers] if callers else [], options=server_options(4 << 20))
    security = Security(trust=trust, everywhere=True)
    servicer = Counting(advertise=(), host={}, message_bytes=4 << 20, security=security)
    servicer.serve(engine)
    add_NodeServicer_to_server(servicer, server)
    if trust:
        server.add_generic_rpc_handlers((trust_handler(trust),))
        port = server.add_secure_port("127.0.0.1:0", server_credentials(trust))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        if callers:
            callers.close()
        await servicer.close()
        await server.stop(0)


def over_tls(trust: Trust) -> Security:
    return Security(trust=trust, everywhere=True)


async def refusal(address, trust) -> ShardhubError:
    """The error that describing a node ends with, after a check that no call reached it."""
    before = Counting.num_calls
    with pytest.raises(ShardhubError) as caught:
        await describe(address, security=over_tls(trust) if trust else PLAIN)
    assert Counting.num_calls == before
    return caught.value


@contextlib.asynccontextmanager
async def linked(address, trust):
    """A head's link, and a queue that records its loss."""
    link = NodeLink(address, await describe(address, security=over_tls(trust)), security=over_tls(trust))
    lost: asyncio.Queue[ShardhubError] = asyncio.Queue()
    arrived: asyncio.Queue = asyncio.Queue()
    link.head = new_id()
    link.arrived = arrived
    try:
        await link.start(link.head, arrived.put_nowait, lost.put_nowait)
        yield link, lost
    finally:
        await link.stop()


async def runs_a_step(link) -> None:
    """Run a session on a link from open to close."""
    session = new_id()
    hop = NextHop(kind=HopKind.END, address="")
    await link.open(
        OpenSession(
            head=link.head,
            session=session,
            epoch=1,
            context=16,
            parameters=SamplingParameters(),
            next_hop=hop,
            position=None,
        )
    )
    row = Row(session=session, epoch=1, position=0, sample=True)
    ids = (1).to_bytes(4, "little")
    loop = asyncio.get_running_loop()
    link.send(Step(rows=(row,), length=1, ids=ids, crossings={}, deadline=loop.time() + 30, lane=Lane.DECODE))
    result = await asyncio.wait_for(link.arrived.get(), 20)
    assert result.rows[0].token is not None
    await link.close_session(link.head, session, 1)


@in_loop
async def test_a_head_runs_a_session_over_tls(engine, node, head):
    """All that a head does works with mutual TLS, and the other side is known by name."""
    async with serving(engine, node) as address:
        assert (await meet(address, head)).name == "mini"
        async with linked(address, head) as (link, lost):
            await runs_a_step(link)
            assert lost.empty()


@in_loop
async def test_a_member_is_a_head_and_a_node(engine, cluster):
    """With members' certificates alone a machine gives orders, serves, and opens a neighbour's link."""
    serves, orders = cluster.trust("mini", Role.MEMBER), cluster.trust("laptop", Role.MEMBER)
    async with serving(engine, serves) as address:
        assert (await meet(address, orders)).role is Role.MEMBER
        async with linked(address, orders) as (link, lost):
            await runs_a_step(link)
            assert lost.empty()
        async with (await open_channel(address, over_tls(orders), OPTIONS)).channel as channel:
            call = NodeStub(channel).Link()
            await call.write(codec.hello_message(head=new_id(), lane=Lane.DECODE, version=1, is_head=False))
            assert (await call.read()) is not grpc.aio.EOF


@in_loop
async def test_a_foreign_head_is_refused(engine, cluster, node, tmp_path):
    """A head of another cluster is refused, and gets no data from the node."""
    other = Cluster(tmp_path / "two").trust("laptop", Role.HEAD)
    async with serving(engine, node) as address:
        error = await refusal(address, other)
    assert isinstance(error, CertificateRefused)
    assert "not issued by this cluster's authority" in error.why


@in_loop
async def test_a_foreign_certificate_is_refused_by_the_node_too(engine, cluster, node, tmp_path):
    """A head that trusts the node's authority, but has a certificate of another one, is refused by the node."""
    other = Cluster(tmp_path / "two")
    folder = other.issue("laptop", Role.HEAD)
    trust = Trust(folder, Role.HEAD, clock=lambda: NOW)
    mixed = type(trust.identity)(
        path=trust.identity.path,
        peer=trust.identity.peer,
        chain_pem=trust.identity.chain_pem,
        key_pem=trust.identity.key_pem,
        authority=cluster.authority.certificate,
        authority_pem=cluster.authority.pem,
    )
    trust.identity = mixed
    async with serving(engine, node) as address:
        error = await refusal(address, trust)
    assert isinstance(error, CertificateRefused)
    assert "does not accept this machine's certificate" in error.what


@in_loop
async def test_an_expired_head_is_refused(engine, cluster, node):
    """A head whose clock stands still and that uses an expired certificate is refused by the node."""
    long_ago = NOW - 2 * LIFE
    head = cluster.trust("laptop", Role.HEAD, now=long_ago, clock=long_ago)
    async with serving(engine, node) as address:
        error = await refusal(address, head)
    assert isinstance(error, CertificateRefused)
    assert "does not accept this machine's certificate" in error.what


def test_an_expired_certificate_is_refused_where_it_is(cluster):
    """With a right clock, a machine refuses to start with its own expired certificate."""
    with pytest.raises(IdentityError, match="expired"):
        cluster.trust("laptop", Role.HEAD, now=NOW - 2 * LIFE)


@in_loop
async def test_an_expired_node_is_refused(engine, cluster, head):
    """A head sends nothing to a node whose certificate has expired."""
    long_ago = NOW - 2 * LIFE
    node = cluster.trust("mini", Role.NODE, now=long_ago, clock=long_ago)
    async with serving(engine, node) as address:
        error = await refusal(address, head)
    assert isinstance(error, CertificateRefused)
    assert "expired" in error.why


@in_loop
async def test_a_heads_certificate_cannot_serve(engine, cluster, head):
    """A head's certificate cannot serve: heads refuse a node that shows one."""
    async with serving(engine, cluster.trust("other", Role.HEAD)) as address:
        error = await refusal(address, head)
    assert isinstance(error, CertificateRefused)
    assert "not the certificate of a node" in error.why


@in_loop
async def test_no_certificate_is_refused(engine, cluster, node):
    """A TLS client without a certificate fails the handshake."""
    before = Counting.num_calls
    async with serving(engine, node) as address:
        credentials = grpc.ssl_channel_credentials(cluster.authority.pem)
        name = ("grpc.ssl_target_name_override", "node.shardhub.internal")
        async with grpc.aio.secure_channel(address, credentials, options=[name]) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await NodeStub(channel).Describe(pb.DescribeRequest(), timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert Counting.num_calls == before


@in_loop
async def test_a_plain_head_learns_that_the_node_speaks_tls(engine, node):
    """A call without TLS to a TLS node fails, and the error says what to do."""
    async with serving(engine, node) as address:
        error = await refusal(address, None)
    assert isinstance(error, NodeUnreachable)
    assert "requires TLS" in error.what
    assert "`tls`" in error.hint


@in_loop
async def test_a_tls_head_sends_nothing_to_a_plain_node(engine, head):
    """A TLS head sends nothing to a node without TLS."""
    async with serving(engine, None) as address:
        error = await refusal(address, head)
    assert isinstance(error, CertificateRefused)
    assert "does not speak TLS" in error.what


@in_loop
async def test_an_address_without_a_listener_is_unreachable(head):
    """An address without a listener is unreachable, not untrusted."""
    with pytest.raises(NodeUnreachable):
        await describe("127.0.0.1:9", security=over_tls(head))


@pytest.mark.parametrize("call", ["Open", "Close", "Renew"])
@in_loop
async def test_a_node_gives_no_orders(engine, cluster, node, call):
    """A control call with a node's certificate is refused before its content is parsed."""
    async with serving(engine, node) as address:
        for trust, expected in (
            (cluster.trust("other", Role.NODE), "PERMISSION_DENIED"),
            (cluster.trust("laptop", Role.HEAD), "UNKNOWN"),
        ):
            channel = (await open_channel(address, over_tls(trust), OPTIONS)).channel
            async with channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(f"/shardhub.v1.Node/{call}")(b"\xff no protobuf", timeout=10)
            # From a head it is parsed, which fails; from a node it is refused before.
            assert caught.value.code().name == expected, trust.role
    assert OUTCOMES[AccessError].grpc == "PERMISSION_DENIED"


@in_loop
async def test_a_node_sends_no_other_node_anywhere(engine, cluster, node):
    """Only a head may order a probe to a third machine; a neighbour may only probe its own link to this node."""
    async with serving(engine, node) as address:
        other = cluster.trust("other", Role.NODE)
        async with (await open_channel(address, over_tls(other), OPTIONS)).channel as channel:
            await NodeStub(channel).Probe(pb.ProbeRequest(payload=b"x"), timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await NodeStub(channel).Probe(pb.ProbeRequest(address=address, timeout_ms=1000), timeout=10)
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(("role", "is_head"), [(Role.NODE, True), (Role.HEAD, False)])
@in_loop
async def test_a_link_is_for_its_role(engine, cluster, node, role, is_head):
    """A node cannot open a head's link, nor a head a neighbour's."""
    async with serving(engine, node) as address:
        trust = cluster.trust("other", role)
        async with (await open_channel(address, over_tls(trust), OPTIONS)).channel as channel:
            call = NodeStub(channel).Link()
            await call.write(codec.hello_message(head=new_id(), lane=Lane.DECODE, version=1, is_head=is_head))
            assert await call.code() == grpc.StatusCode.PERMISSION_DENIED


@in_loop
async def test_a_revoked_head_is_cut_off_and_stays_out(engine, cluster, node, head):
    """A revoked head loses its live link at once and cannot come back; another head's link goes on."""
    good = cluster.trust("studio", Role.HEAD)
    async with (
        serving(engine, node) as address,
        linked(address, head) as (link, lost),
        linked(address, good) as (other, other_lost),
    ):
        await runs_a_step(link)
        node.learn(cluster.authority.revoke("laptop", now=NOW).pem)
        error = await asyncio.wait_for(lost.get(), HEARD_S)
        assert isinstance(error, CertificateRefused)
        assert "revoked" in error.what
        await runs_a_step(other)
        assert other_lost.empty()
        again = await refusal(address, head)
    assert isinstance(again, CertificateRefused)
    assert OUTCOMES[CertificateRefused].grpc == "UNAUTHENTICATED"


@in_loop
async def test_a_revoked_head_gets_unauthenticated_for_each_call(engine, cluster, node, head):
    """Every method refuses with the status of the error table, before anything is parsed."""
    async with serving(engine, node) as address:
        peer = await meet(address, head)
        node.learn(cluster.authority.revoke("laptop", now=NOW).pem)
        async with channel_to(address, head, peer, OPTIONS) as channel:
            for call in CALLS:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(f"/shardhub.v1.Node/{call}")(b"\xff no protobuf", timeout=10)
                assert caught.value.code().name == OUTCOMES[CertificateRefused].grpc


@in_loop
async def test_a_revoked_node_is_left(engine, cluster, node, head):
    """A head that hears of a node's revocation cuts its link to the node and does not dial it again."""
    async with serving(engine, node) as address, linked(address, head) as (_, lost):
        head.learn(cluster.authority.revoke("mini", now=NOW).pem)
        error = await asyncio.wait_for(lost.get(), HEARD_S)
        assert isinstance(error, NodeLost)  # which recovery takes to another node
        assert "revoked" in error.what
        again = await refusal(address, head)
        assert isinstance(again, CertificateRefused)
        assert "revoked" in again.what


@in_loop
async def test_whoever_knows_of_a_revocation_tells(engine, cluster, node, head):
    """One head brings a revocation to a node, which cuts off another head: machines need not be informed one by one."""
    messenger = cluster.trust("studio", Role.HEAD)
    async with serving(engine, node) as address, linked(address, head) as (_, lost):
        messenger.learn(cluster.authority.revoke("laptop", now=NOW).pem)
        await describe(address, security=over_tls(messenger))
        assert node.is_revoked(head.identity.peer)
        assert isinstance(await asyncio.wait_for(lost.get(), HEARD_S), CertificateRefused)


@in_loop
async def test_a_node_tells_heads_what_it_knows(engine, cluster, node, head):
    """A head that connects to a node receives the revocations that the node knows."""
    peer = cluster.trust("bad", Role.NODE).identity.peer
    node.learn(cluster.authority.revoke("bad", now=NOW).pem)
    async with serving(engine, node) as address:
        await describe(address, security=over_tls(head))
    assert head.is_revoked(peer)


@in_loop
async def test_a_neighbour_that_is_revoked_loses_its_link(engine, cluster, node):
    """When a neighbour is revoked, the node that sent it steps stops and reports the lost sessions."""
    neighbour = cluster.trust("next", Role.NODE)
    failures: asyncio.Queue = asyncio.Queue()
    async with serving(engine, neighbour) as address:
        peers = Peers(
            message_bytes=4 << 20,
            queue_steps=8,
            on_failure=lambda head, failure: failures.put_nowait(failure),
            security=over_tls(node),
        )
        await peers.check(address)
        await peers.probe(address, engine.boot_id, 10)
        row = Row(session=new_id(), epoch=1, position=0, sample=True)
        step = Step(rows=(row,), length=1, ids=bytes(4), crossings={}, deadline=1e18, lane=Lane.DECODE)
        peers.send(new_id(), address, step)
        node.learn(cluster.authority.revoke("next", now=NOW).pem)
        failure = await asyncio.wait_for(failures.get(), 10)
        assert isinstance(failure.error, NodeLost)
        assert "revoked" in failure.error.what
        assert [one.session for one in failure.rows] == [row.session]
        with pytest.raises(CertificateRefused):
            await peers.check(address)
        await peers.close()


@in_loop
async def test_another_node_cannot_take_the_place_of_one_that_was_met(engine, cluster, node, head):
    """A channel is bound to one node: another valid node at the address is refused."""
    async with serving(engine, node) as first, serving(engine, cluster.trust("other", Role.NODE)) as second:
        peer = await meet(first, head)
        async with channel_to(second, head, peer, OPTIONS) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await NodeStub(channel).Describe(pb.DescribeRequest(), timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@in_loop
async def test_a_renewed_certificate_is_used_without_a_restart(engine, cluster, node, head):
    """New links show a running node's new certificate; existing links go on."""
    async with serving(engine, node) as address, linked(address, head) as (link, lost):
        before = await meet(address, head)
        cluster.issue("mini", Role.NODE, now=NOW + DAY / 48)
        node.reread()
        after = await meet(address, head)
        assert (after.name, after.serial) == (before.name, node.identity.peer.serial)
        assert after.serial != before.serial
        await runs_a_step(link)
        assert lost.empty()


@pytest.mark.parametrize("address", ["192.168.7.7:50051", "[2001:db8::1]:50051", "8.8.8.8:1"])
@in_loop
async def test_nothing_is_sent_off_loopback_without_tls(address):
    """Without a certificate another machine is not dialled, unless explicitly allowed."""
    with pytest.raises(AddressError, match="without TLS"):
        await describe(address)
    assert await Security(insecure_lan=True).for_address(address) is None


@in_loop
async def test_loopback_needs_no_certificate(engine, head):
    """On loopback the default is plaintext, also on a machine with certificates, unless they are given as an option."""
    assert await Security(trust=head).for_address("127.0.0.1:1") is None
    assert await Security(trust=head).for_address("[::1]:1") is None
    assert await Security(trust=head).for_address("localhost:1") is None
    assert await Security(trust=head).for_address("192.168.7.7:1") is head
    assert await over_tls(head).for_address("127.0.0.1:1") is head
    async with serving(engine, None) as address:
        await describe(address, security=Security(trust=head))


@in_loop
async def test_a_forged_list_does_not_pass_the_wire(engine, cluster, node, head, tmp_path):
    """A head that brings a revocation list of another authority is refused, and the list is not adopted."""
    other = Cluster(tmp_path / "two")
    other.trust("laptop", Role.HEAD)
    forged = other.authority.revoke("laptop", now=NOW).pem
    async with serving(engine, node) as address:
        peer = await meet(address, head)
        async with channel_to(address, head, peer, OPTIONS) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/shardhub.v1.Trust/Revocations")(forged, timeout=10)
        assert caught.value.code().name == OUTCOMES[CertificateRefused].grpc
    assert node.revocations.number == 1
