"""Invitations that several machines use, each under its own name: both sides real, on a clock that the test sets."""

from __future__ import annotations

import contextlib
import datetime as dt

import pytest

from shardhub.errors import CertificateRefused, UsageError
from shardhub.security.certificates import Role
from shardhub.security.desk import Desk
from shardhub.security.identity import load_identity
from shardhub.security.invite import InviteLine
from shardhub.security.joining import Wish, join
from shardhub.security.open_invites import INVITES_FILE, OpenInvites
from tests.security.cluster import NOW, Cluster
from tests.security.loop import in_loop

HOUR = dt.timedelta(hours=1)


class Setting:
    """An authority with a desk that lets machines join, and the clock of both."""

    def __init__(self, folder):
        self.now = NOW
        self.cluster = Cluster(folder, desk="127.0.0.1:50049")
        self.invites = OpenInvites(self.cluster.authority.folder, clock=lambda: self.now)

    @contextlib.asynccontextmanager
    async def open_desk(self):
        desk = Desk(self.cluster.authority, clock=lambda: self.now, invites=self.invites)
        self.address = f"127.0.0.1:{await desk.start('127.0.0.1', 0)}"
        try:
            yield
        finally:
            await desk.stop()

    def line(self, role=Role.MEMBER, life=HOUR) -> InviteLine:
        return InviteLine(
            address=self.address,
            fingerprint=self.cluster.authority.fingerprint,
            secret=self.invites.make(role, life),
        )

    def names(self) -> list[str]:
        return [one.name for one in self.cluster.authority.ledger().issued]


@pytest.fixture
def setting(tmp_path):
    return Setting(tmp_path / "one")


@in_loop
async def test_several_machines_use_one_line(setting, tmp_path):
    """Each machine joins under the name that it brings, also after the process that answers was restarted."""
    async with setting.open_desk():
        line = setting.line()
        mini = await join(line, tmp_path / "mini", Wish(name="mini"))
    async with setting.open_desk():
        line = InviteLine(address=setting.address, fingerprint=line.fingerprint, secret=line.secret)
        box = await join(line, tmp_path / "box", Wish(name="box", role=Role.NODE))
    assert (mini.peer.name, mini.peer.role) == ("mini", Role.MEMBER)
    assert (box.peer.name, box.peer.role) == ("box", Role.NODE)
    assert load_identity(tmp_path / "mini", Role.HEAD, now=NOW).peer == mini.peer
    kept = (setting.cluster.authority.folder / INVITES_FILE).read_text()
    assert line.secret not in kept


@in_loop
async def test_a_line_that_comes_late_lets_nobody_join(setting, tmp_path):
    """An invitation ends with its time, and with the authority's order; the reason and the remedy are given."""
    async with setting.open_desk():
        late, closed, wrong = setting.line(life=HOUR / 2), setting.line(), setting.line()
        setting.now += HOUR / 2
        with pytest.raises(CertificateRefused, match=r"expired.*shardhub cluster invite"):
            await join(late, tmp_path / "mini", Wish(name="mini"))
        setting.invites.close()
        for line in (closed, InviteLine(address=wrong.address, fingerprint=wrong.fingerprint, secret="A" * 27)):
            with pytest.raises(CertificateRefused, match="not open"):
                await join(line, tmp_path / "mini", Wish(name="mini"))
    assert setting.names() == []


@in_loop
async def test_an_invitation_for_nodes_makes_no_members(setting, tmp_path):
    """Whoever holds a line for machines that only serve cannot give orders to the cluster."""
    async with setting.open_desk():
        line = setting.line(Role.NODE)
        for role in (Role.MEMBER, Role.HEAD):
            with pytest.raises(CertificateRefused, match="does not let a machine join"):
                await join(line, tmp_path / "mini", Wish(name="mini", role=role))
        await join(line, tmp_path / "mini", Wish(name="mini", role=Role.NODE))
    assert setting.names() == ["mini"]


@in_loop
async def test_a_name_is_one_machines(setting, tmp_path):
    """A chosen name that is taken is refused and another one proposed; a host's name gets a number."""
    async with setting.open_desk():
        line = setting.line()
        await join(line, tmp_path / "first", Wish(name="mini"))
        setting.cluster.authority.revoke("mini", now=NOW)
        with pytest.raises(CertificateRefused, match="another machine") as caught:
            await join(line, tmp_path / "second", Wish(name="mini"))
        assert "mini-2" in caught.value.hint
        second = await join(line, tmp_path / "second", Wish(name="mini", may_be_numbered=True))
        third = await join(line, tmp_path / "third", Wish(name="authority", may_be_numbered=True))
        with pytest.raises(UsageError, match="cannot be the name"):
            await join(line, tmp_path / "fourth", Wish(name="No Name", may_be_numbered=True))
    assert (second.peer.name, third.peer.name) == ("mini-2", "authority-2")


def test_long_names_get_a_number_too(tmp_path):
    """A number replaces the last letters of a name that is as long as a name can be."""
    cluster = Cluster(tmp_path / "one")
    cluster.issue("a" * 63, Role.NODE, place="one")
    assert cluster.authority.free_name("a" * 63) == "a" * 56 + "-2"
    assert cluster.authority.free_name("a" * 62) == "a" * 62
