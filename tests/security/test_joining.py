"""Joining a cluster by an invitation, and renewing certificates: both sides real, on a clock that the test sets."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import logging
import os
import ssl

import pytest

from shardhub.errors import CertificateRefused, IdentityError, NodeUnreachable, UsageError, WireError
from shardhub.security.certificates import LIFE, Role
from shardhub.security.desk import Desk
from shardhub.security.identity import load_desk, load_identity
from shardhub.security.invite import INVITE_LIFE_S, Invite, InviteLine, parse_invite
from shardhub.security.joining import ask, hear_revocations, join, renew
from shardhub.security.keeper import ask_desk, keep
from shardhub.security.trust import Trust
from tests.security.cluster import NOW, Cluster
from tests.security.loop import in_loop
from tests.waiting import until


class Clock:
    """Seconds and dates that advance on demand."""

    def __init__(self) -> None:
        self.passed = 0.0

    def seconds(self) -> float:
        return self.passed

    def date(self) -> dt.datetime:
        return NOW + dt.timedelta(seconds=self.passed)


@contextlib.asynccontextmanager
async def open_desk(cluster: Cluster, clock: Clock, name: str | None = "mini", role: Role = Role.NODE):
    """A desk with an invitation: its address, the invitation, and the line."""
    invite = Invite(name, role, clock=clock.seconds) if name else None
    desk = Desk(cluster.authority, clock=clock.date, invite=invite)
    address = f"127.0.0.1:{await desk.start('127.0.0.1', 0)}"
    try:
        yield desk, invite, invite.line(address, cluster.authority.fingerprint) if invite else address
    finally:
        await desk.stop()


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path / "one", desk="127.0.0.1:50049")


@in_loop
async def test_a_machine_joins_once(cluster, tmp_path):
    """An invitation issues one certificate with its role and name; a used one issues no more."""
    async with open_desk(cluster, Clock()) as (desk, invite, line):
        joined = await join(line, tmp_path / "tls")
        assert desk.is_closed.is_set()
        assert invite.is_used
        with pytest.raises(CertificateRefused, match="no longer open"):
            await join(line, tmp_path / "second")
    assert (joined.peer.name, joined.peer.role) == ("mini", Role.NODE)
    assert load_identity(tmp_path / "tls", Role.NODE, now=NOW).peer == joined.peer
    assert load_desk(tmp_path / "tls") == "127.0.0.1:50049"
    assert [one.name for one in cluster.authority.ledger().issued] == ["mini"]
    assert not (tmp_path / "second").exists()


@in_loop
async def test_a_member_has_one_certificate_for_both_roles(cluster, tmp_path):
    """A machine that joins as a member serves and runs prompts with one certificate, and renews it as such."""
    async with open_desk(cluster, Clock(), role=Role.MEMBER) as (_, _, line):
        joined = await join(line, tmp_path / "tls")
    for role in (Role.HEAD, Role.NODE):
        assert Trust(tmp_path / "tls", role, clock=lambda: NOW).identity.peer == joined.peer
    async with open_desk(cluster, Clock(), name=None) as (_, _, address):
        await renew(Trust(tmp_path / "tls", Role.NODE, clock=lambda: NOW), address)
    renewed = load_identity(tmp_path / "tls", Role.HEAD, now=NOW).peer
    assert (renewed.name, renewed.role) == ("mini", Role.MEMBER)
    assert renewed.serial != joined.peer.serial
    assert [one.role for one in cluster.authority.ledger().issued] == [Role.MEMBER, Role.MEMBER]


@in_loop
async def test_the_key_never_leaves_the_machine(cluster, tmp_path):
    """What the authority keeps of a machine that joined does not contain the machine's private key."""
    async with open_desk(cluster, Clock()) as (_, _, line):
        joined = await join(line, tmp_path / "tls")
    key = joined.path.read_text().split("-----")[2].strip().encode()
    assert len(key) > 100
    for path in cluster.authority.folder.iterdir():
        assert key not in path.read_bytes()


@in_loop
async def test_a_wrong_fingerprint_is_refused_before_the_secret_is_sent(cluster, tmp_path):
    """A server with another fingerprint does not learn the secret, and the invitation stays valid."""
    async with open_desk(cluster, Clock()) as (_, invite, line):
        wrong = InviteLine(address=line.address, fingerprint="0" * 64, secret="A" * 27)
        for _ in range(6):  # more often than a wrong secret may come
            with pytest.raises(CertificateRefused, match="not the authority that invited"):
                await join(wrong, tmp_path / "tls")
        assert invite.is_open
        await join(line, tmp_path / "tls")


@in_loop
async def test_a_stand_in_with_the_authoritys_certificate_hears_no_secret(cluster, tmp_path):
    """A server that shows the authority's certificate without having its key fails the handshake."""
    other = Cluster(tmp_path / "two")
    heard: list[bytes] = []
    node = other.issue("authority-2", Role.NODE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(node / "node.pem")

    async def serve(reader, writer):
        with contextlib.suppress(OSError):
            heard.append(await reader.readline())
            writer.write(json.dumps({"authority": cluster.authority.pem.decode()}).encode() + b"\n")
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    line = InviteLine(address=f"127.0.0.1:{port}", fingerprint=cluster.authority.fingerprint, secret="S" * 27)
    with pytest.raises(CertificateRefused, match="not this cluster's authority"):
        await join(line, tmp_path / "tls")
    server.close()
    assert heard == [b'{"ask": "authority"}\n']


@in_loop
async def test_an_invitation_ends_with_its_time(cluster, tmp_path):
    """An invitation expires after ten minutes."""
    clock = Clock()
    async with open_desk(cluster, clock) as (_, invite, line):
        clock.passed = INVITE_LIFE_S
        with pytest.raises(CertificateRefused, match="no longer open"):
            await join(line, tmp_path / "tls")
        assert not invite.is_used
    assert not cluster.authority.ledger().issued


@in_loop
async def test_wrong_secrets_close_an_invitation(cluster, tmp_path):
    """After a few wrong secrets the right one is refused too."""
    async with open_desk(cluster, Clock()) as (desk, _, line):
        wrong = InviteLine(address=line.address, fingerprint=line.fingerprint, secret="A" * 27)
        for _ in range(5):
            with pytest.raises(CertificateRefused, match="secret is not that"):
                await join(wrong, tmp_path / "tls")
        assert desk.is_closed.is_set()
        with pytest.raises(CertificateRefused, match="no longer open"):
            await join(line, tmp_path / "tls")
    assert not (tmp_path / "tls").exists()


@in_loop
async def test_a_folder_of_another_cluster_keeps_its_certificates(cluster, tmp_path):
    """Joining does not overwrite the folder of another cluster, and leaves the invitation valid."""
    other = Cluster(tmp_path / "two")
    folder = other.issue("mini", Role.NODE)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    async with open_desk(cluster, Clock()) as (_, invite, line):
        with pytest.raises(IdentityError, match="another cluster"):
            await join(line, folder)
        assert invite.is_open
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@in_loop
async def test_a_revoked_name_cannot_join(cluster, tmp_path):
    """An open invitation whose name is revoked meanwhile issues no certificate."""
    cluster.issue("mini", Role.NODE)
    async with open_desk(cluster, Clock()) as (_, _, line):
        cluster.authority.revoke("mini", now=NOW)
        with pytest.raises(CertificateRefused, match="was revoked"):
            await join(line, tmp_path / "tls")


@in_loop
async def test_nobody_joins_at_a_desk_without_invitation(cluster, tmp_path):
    """The desk that renews certificates admits no new machine."""
    async with open_desk(cluster, Clock(), None) as (_, _, address):
        line = InviteLine(address=address, fingerprint=cluster.authority.fingerprint, secret="A" * 27)
        with pytest.raises(CertificateRefused, match="no open invitation"):
            await join(line, tmp_path / "tls")


@in_loop
async def test_a_certificate_is_renewed_when_it_is_due(cluster):
    """A certificate with a third of its life left is replaced with a new key under the same name; not sooner."""
    clock = Clock()
    async with open_desk(cluster, clock, None) as (_, _, address):
        folder = cluster.issue("mini", Role.NODE)
        (folder / "desk.json").write_text(json.dumps({"address": address}))
        trust = Trust(folder, Role.NODE, clock=clock.date)
        first = trust.identity
        await ask_desk(trust)
        assert trust.identity is first
        clock.passed = LIFE.total_seconds() * 0.7
        await ask_desk(trust)
        second = trust.identity
        assert second.peer.name == "mini"
        assert second.peer.serial != first.peer.serial
        assert second.key_pem != first.key_pem
        assert second.peer.not_after == clock.date() + LIFE
        assert load_identity(folder, Role.NODE, now=clock.date()).peer == second.peer
        await ask_desk(trust)
        assert trust.identity is second


@in_loop
async def test_a_certificate_that_cannot_be_stored_is_not_renewed(cluster, monkeypatch):
    """In a read-only folder no certificate is asked for; revocations are heard all the same."""
    clock = Clock()
    async with open_desk(cluster, clock, None) as (_, _, address):
        folder = cluster.issue("mini", Role.NODE)
        (folder / "desk.json").write_text(json.dumps({"address": address}))
        trust, peer = Trust(folder, Role.NODE, clock=clock.date), cluster.trust("bad", Role.HEAD).identity.peer
        num_issued = len(cluster.authority.ledger().issued)
        cluster.authority.revoke("bad", now=NOW)
        clock.passed = LIFE.total_seconds() * 0.7
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(IdentityError, match="is read-only"):
            await ask_desk(trust)
        assert trust.is_revoked(peer)
        assert len(cluster.authority.ledger().issued) == num_issued


def test_certificates_of_a_mounted_secret_are_replaced(cluster, tmp_path):
    """Kubernetes swaps a link for all files of a Secret at once: a running process uses the new certificate."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()

    def mount(version: str) -> None:
        cluster.issue("mini", Role.NODE, place=f"mounted-{version}").rename(mounted / f"..{version}")
        (mounted / "..new").symlink_to(f"..{version}")
        (mounted / "..new").rename(mounted / "..data")

    mount("1")
    for name in ("authority.pem", "node.pem", "revoked.pem"):
        (mounted / name).symlink_to(f"..data/{name}")
    trust = Trust(mounted, Role.NODE, clock=Clock().date)
    first = trust.identity.peer.serial
    mount("2")
    trust.reread()
    assert trust.identity.peer.serial != first


@in_loop
async def test_a_revoked_certificate_is_not_renewed(cluster):
    """A revoked machine's renewal is refused with the reason."""
    async with open_desk(cluster, Clock(), None) as (_, _, address):
        trust = cluster.trust("mini", Role.NODE)
        cluster.authority.revoke("mini", now=NOW)
        with pytest.raises(CertificateRefused, match="revoked"):
            await renew(trust, address)


@in_loop
async def test_a_foreign_certificate_is_not_renewed(cluster, tmp_path):
    """A renewal across clusters fails: neither side accepts the other's certificate."""
    other = Cluster(tmp_path / "two")
    async with open_desk(cluster, Clock(), None) as (_, _, address):
        with pytest.raises(CertificateRefused):
            await renew(other.trust("mini", Role.NODE), address)
    assert not cluster.authority.ledger().issued


@in_loop
async def test_the_desk_tells_what_was_revoked(cluster):
    """A running process that asks the desk hears of a revocation, without any other link."""
    async with open_desk(cluster, Clock(), None) as (_, _, address):
        trust = cluster.trust("studio", Role.NODE)
        peer = cluster.trust("mini", Role.NODE).identity.peer
        cluster.authority.revoke("mini", now=NOW)
        assert not trust.is_revoked(peer)
        await hear_revocations(trust, address)
        assert trust.is_revoked(peer)


@in_loop
async def test_the_keeper_hears_and_renews_by_itself(cluster):
    """The task that runs in every node and head renews its certificate and fetches revocations periodically."""
    clock = Clock()
    async with open_desk(cluster, clock, None) as (_, _, address):
        folder = cluster.issue("mini", Role.NODE)
        (folder / "desk.json").write_text(
            json.dumps({"address": address, "format_version": 1, "kind": "shardhub-desk"})
        )
        trust = Trust(folder, Role.NODE, clock=clock.date)
        peer, serial = cluster.trust("bad", Role.HEAD).identity.peer, trust.identity.peer.serial
        cluster.authority.revoke("bad", now=NOW)
        keeper = asyncio.create_task(keep(trust, reread_s=0.01, ask_s=0.01))

        async def heard() -> bool:
            return trust.is_revoked(peer)

        async def renewed() -> bool:
            return trust.identity.peer.serial != serial

        await until(heard)
        clock.passed = LIFE.total_seconds() * 0.7
        await until(renewed)
        keeper.cancel()


@pytest.mark.parametrize(
    "line",
    [b"\n", b"[]\n", b"{}\n", b'{"ask": "keys"}\n', b'{"ask": "join"}\n', b'{"ask": 1}\n', b"\xff\xfe\n", b"[" * 9999],
)
@in_loop
async def test_rubbish_at_the_desk_changes_nothing(cluster, line, tmp_path):
    """Random bytes get an error or no answer, and the desk goes on."""
    async with open_desk(cluster, Clock()) as (_, _, invite):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        host, port = invite.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(line)
        writer.write_eof() if writer.can_write_eof() else None
        if line.endswith(b"\n"):
            assert b'"error": "WireError"' in await reader.readline()
        writer.transport.abort()
        await join(invite, tmp_path / "tls")


@in_loop
async def test_an_answer_of_another_service_is_refused(cluster, tmp_path):
    """Another service at the address is reported as such."""

    async def serve(reader, writer):
        await reader.readline()
        writer.write(b"220 mail\r\n")
        writer.close()

    trust = cluster.trust("mini", Role.NODE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trust.identity.path)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    unknown = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unknown.check_hostname, unknown.verify_mode = False, ssl.CERT_NONE
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(WireError):
        await ask(f"127.0.0.1:{port}", {"ask": "authority"}, unknown, host=None)
    server.close()
    with pytest.raises(NodeUnreachable):
        await ask(f"127.0.0.1:{port}", {"ask": "authority"}, unknown, host=None)


def test_a_line_is_read_as_it_was_written():
    """A line is read back unchanged; malformed ones are refused without being quoted."""
    line = InviteLine(address="192.168.1.7:50049", fingerprint="ab" * 32, secret="x" * 27)
    assert parse_invite(f" {line.text()}\n") == line
    for text in ("", "a/b/c", line.text() + "x", line.text().replace("ab", "AB"), line.text().replace(":50049", "")):
        with pytest.raises(UsageError) as caught:
            parse_invite(text)
        assert "xxx" not in str(caught.value)


@in_loop
async def test_no_secret_is_logged_or_shown(cluster, tmp_path, caplog):
    """No log, error or repr contains the secret or a key."""
    caplog.set_level(logging.DEBUG)
    texts = []
    async with open_desk(cluster, Clock()) as (_, invite, line):
        wrong = InviteLine(address=line.address, fingerprint=line.fingerprint, secret="W" * 27)
        with pytest.raises(CertificateRefused) as caught:
            await join(wrong, tmp_path / "tls")
        joined = await join(line, tmp_path / "tls")
        texts += [str(caught.value), repr(line), repr(invite), repr(vars(invite)), repr(joined)]
    identity = load_identity(tmp_path / "tls", Role.NODE, now=NOW)
    texts += [repr(identity), caplog.text]
    key = joined.path.read_text().splitlines()[1]
    for text in texts:
        assert line.secret not in text
        assert "WWWW" not in text
        assert key not in text
