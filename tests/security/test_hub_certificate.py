"""Certificates of Hubs: what they carry, who gets one for which hosts, and how they are renewed."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from shardhub.errors import CertificateRefused, IdentityError, NodeUnreachable, UsageError, WireError
from shardhub.security.certificates import LIFE, Role, check_host, hosts_of, load_certificate, make_request, new_key
from shardhub.security.handshake import meet
from shardhub.security.hub_certificate import HubCertificate
from shardhub.security.identity import load_identity
from shardhub.security.joining import ask, certify_hub
from tests.security.cluster import NOW, Cluster
from tests.security.loop import in_loop
from tests.security.test_joining import Clock, open_desk


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path / "one")


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> bytes:
    """A handshake in memory; returns the certificate that the client was shown."""
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    calling = client.wrap_bio(ours, theirs, server_hostname=host)
    serving = server.wrap_bio(theirs, ours, server_side=True)
    for side in (calling, serving, calling, serving):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    shown = calling.getpeercert(binary_form=True)
    assert shown is not None
    return shown


def client(cluster: Cluster) -> ssl.SSLContext:
    """TLS of a client that trusts the cluster and checks as strictly as Python 3.13 does by default."""
    context = ssl.create_default_context(cadata=cluster.authority.pem.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def test_any_client_can_check_a_hubs_certificate(cluster):
    """It carries host names and addresses, is for serving alone, and lives as long as the others."""
    certificate = cluster.hub("192.168.1.5", "fd00::5", "Studio.local.")
    assert certificate.hosts == {"192.168.1.5", "fd00::5", "studio.local"}
    made = load_certificate(certificate.identity.chain_pem)
    purposes = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert made.not_valid_after_utc == NOW + LIFE
    for host in ("192.168.1.5", "fd00::5", "studio.local"):
        handshake(certificate.context, client(cluster), host)
    for host in ("192.168.1.6", "studio.lan", "node.shardhub.internal"):
        with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
            handshake(certificate.context, client(cluster), host)


@pytest.mark.parametrize("host", ["", "*.example.org", "a..b", "-a", "a b", "x" * 64, "http://a", "a/b"])
def test_what_no_certificate_carries(host):
    """Wildcards, URLs and malformed names are refused."""
    with pytest.raises(UsageError, match="neither a host name nor"):
        check_host(host)


@in_loop
async def test_a_hub_cannot_pose_as_a_node(cluster):
    """A head that dials a Hub's server refuses its certificate."""
    certificate = cluster.hub("127.0.0.1")
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=certificate.context)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(CertificateRefused, match="cannot be trusted") as refused:
        await meet(f"127.0.0.1:{port}", cluster.trust("laptop", Role.HEAD))
    assert "not the certificate of a node" in refused.value.why
    server.close()
    await server.wait_closed()


@in_loop
async def test_a_hub_cannot_call(cluster):
    """The desk refuses a Hub's certificate as a caller's."""
    context = ssl.create_default_context(cadata=cluster.authority.pem.decode())
    context.load_cert_chain(cluster.hub("127.0.0.1").identity.path)
    before = cluster.authority.ledger()
    async with open_desk(cluster, Clock(), None) as (_, _, address):
        with pytest.raises((NodeUnreachable, WireError)):
            await ask(address, {"ask": "renew", "request": make_request(new_key()).decode()}, context)
    assert cluster.authority.ledger() == before


@in_loop
async def test_the_desk_certifies_a_machine_for_its_name_and_the_address_it_calls_from(cluster):
    """A machine that joined gets a Hub's certificate for these, and for no other host."""
    trust = cluster.trust("mini", Role.NODE)
    async with open_desk(cluster, Clock(), None) as (_, _, address):
        await certify_hub(trust, address, {"127.0.0.3", "mini.local"}, local_host="127.0.0.3")
        made = load_identity(trust.folder, Role.HUB, now=NOW)
        assert (made.peer.name, made.peer.role) == ("mini", Role.HUB)
        carried = {"mini", "mini.local", "127.0.0.3", "localhost", "127.0.0.1", "::1"}
        assert hosts_of(load_certificate(made.chain_pem)) == carried
        issued = [(one.name, one.role) for one in cluster.authority.ledger().issued]
        assert issued == [("mini", "node"), ("mini", "hub")]
        for foreign in ("127.0.0.4", "studio.local", "huggingface.co"):
            with pytest.raises(CertificateRefused, match=f"Hub of mini for {foreign}"):
                await certify_hub(trust, address, {foreign}, local_host="127.0.0.3")
        cluster.authority.revoke("mini", now=NOW)
        with pytest.raises(CertificateRefused, match="revoked"):
            await certify_hub(trust, address, {"mini"}, local_host="127.0.0.3")


def test_a_certificate_is_renewed_when_it_is_due_or_lacks_a_host(cluster, tmp_path):
    """New connections are shown the newest certificate; one that is valid and complete stays."""
    now, hosts, issued = NOW, {"localhost"}, []

    def issue(certified):
        issued.append(certified)
        cluster.issue("box", Role.HUB, now=now, place="box-hub", hosts=certified)

    certificate = HubCertificate(
        cluster.folder / "box-hub", hosts=lambda: frozenset(hosts), issue=issue, clock=lambda: now
    )
    first = handshake(certificate.context, client(cluster), "localhost")
    certificate.refresh()
    assert issued == [{"localhost"}]
    hosts.add("192.168.1.5")  # the machine got another address
    certificate.refresh()
    certificate.apply()
    assert handshake(certificate.context, client(cluster), "192.168.1.5") != first
    now += LIFE * 0.7
    certificate.refresh()
    assert len(issued) == 3
    assert certificate.identity.peer.not_after == now + LIFE


def test_a_usable_certificate_outlives_an_authority_that_is_away(cluster, caplog):
    """Without the authority a valid certificate is used with a warning, and an expired one is not."""
    folder = cluster.issue("box", Role.HUB, hosts=["localhost"])
    now = NOW + LIFE * 0.9

    def fail(_):
        raise NodeUnreachable("The authority is away.")

    def made(clock: dt.datetime, *hosts: str) -> HubCertificate:
        return HubCertificate(folder, hosts=lambda: frozenset(hosts), issue=fail, clock=lambda: clock)

    assert made(now, "localhost").identity.peer.not_after == NOW + LIFE
    assert "could not be renewed: The authority is away." in caplog.text
    with pytest.raises(NodeUnreachable):
        made(now, "localhost", "192.168.1.5")
    with pytest.raises(NodeUnreachable):
        made(NOW + LIFE, "localhost")


def test_a_folder_that_only_looks_like_a_hubs(cluster):
    """A node's certificate under the Hub's name is not served: a new one is issued, or the reason given."""
    folder = cluster.issue("box", Role.NODE)
    (folder / "node.pem").rename(folder / "hub.pem")
    with pytest.raises(IdentityError):
        HubCertificate(folder, hosts=lambda: frozenset(), issue=lambda _: None)
