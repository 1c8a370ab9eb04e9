"""A cluster comes to be: lines, joins and their refusals, with real desks; residents have their own tests."""

from __future__ import annotations

import datetime as dt
from contextlib import contextmanager

import pytest

from shardhub.cli.commands.cluster import members
from shardhub.cli.flags import Output
from shardhub.errors import AddressError, CertificateRefused, IdentityError, NodeUnreachable, UsageError
from shardhub.security.authority import Authority
from shardhub.security.certificates import Role, new_key
from shardhub.security.desk import Desk
from shardhub.security.identity import load_identity, store_identity
from shardhub.security.invite import parse_invite
from shardhub.security.open_invites import OpenInvites
from shardhub.security.trust import utc_now
from shardhub.usecases.authority_backup import back_up, restore
from shardhub.usecases.forming import (
    JoinSettings,
    close_invitations,
    init_cluster,
    invite_machines,
    join_cluster,
    joined_machines,
)
from shardhub.usecases.forming_place import FormingPlace, own_machine
from shardhub.usecases.leaving import leave_cluster
from shardhub.usecases.loop import LoopThread
from tests.ports import kept

RESIDENTS = ("127.0.0.1:50047", "192.168.1.7:50047")


def place(folder) -> FormingPlace:
    """A machine with folders of its own."""
    return FormingPlace(state=folder / "state", tls=folder / "tls", authority=folder / "authority")


@contextmanager
def desk_of(first: FormingPlace, *, clock=utc_now):
    """The desk that a resident of the first machine keeps."""
    authority = Authority.open(first.authority_folder)
    host, _, port = authority.ledger().desk.rpartition(":")
    invites = OpenInvites(first.authority_folder, clock=clock)

    async def begin() -> Desk:
        desk = Desk(authority, clock=clock, invites=invites, residents=lambda: RESIDENTS)
        await desk.start(host, int(port))
        return desk

    with LoopThread() as loop:
        desk = loop.wait(begin())
        try:
            yield
        finally:
            loop.wait(desk.stop())


@pytest.fixture
def first(tmp_path):
    """The first machine of a cluster, whose desk has a port of its own."""
    made = place(tmp_path / "studio")
    with kept() as port:
        init_cluster(made, name="studio", address=f"127.0.0.1:{port}")
    return made


def test_machines_join_with_one_line(first, tmp_path):
    """Names are chosen, or taken from the host and numbered; what machines may do is what the line and they say."""
    with desk_of(first):
        line = invite_machines(first).line
        mini = join_cluster(line, JoinSettings(name="mini"), place(tmp_path / "mini"))
        box = join_cluster(line, JoinSettings(serve_only=True), place(tmp_path / "box"))
        again = join_cluster(line, JoinSettings(), place(tmp_path / "other"))
        with pytest.raises(CertificateRefused, match="the name of another machine"):
            join_cluster(line, JoinSettings(name="mini"), place(tmp_path / "third"))
    assert (mini.name, mini.role, mini.seeds) == ("mini", Role.MEMBER, RESIDENTS)
    assert box.role is Role.NODE
    assert again.name == f"{box.name}-2"
    assert [(one.name, one.serve_only) for one in joined_machines(first)] == sorted(
        [("studio", False), ("mini", False), (box.name, True), (again.name, False)]
    )


def test_a_line_for_machines_that_serve_only_makes_no_member(first, tmp_path):
    """Whoever has such a line cannot give orders to the cluster."""
    with desk_of(first):
        line = invite_machines(first, role=Role.NODE).line
        with pytest.raises(CertificateRefused, match="does not let a machine join as a member"):
            join_cluster(line, JoinSettings(name="mini"), place(tmp_path / "mini"))
        joined = join_cluster(line, JoinSettings(name="mini", serve_only=True), place(tmp_path / "mini"))
    assert joined.role is Role.NODE


def test_commands_can_be_repeated(first, tmp_path):
    """A machine that began a cluster or joined it stays as it is, under the name that it has."""
    mini = place(tmp_path / "mini")
    assert not init_cluster(first).is_new
    with pytest.raises(UsageError, match="keeps its name"):
        init_cluster(first, name="other")
    with desk_of(first):
        line = invite_machines(first).line
        assert join_cluster(line, JoinSettings(name="mini"), mini).is_new
    again = join_cluster(line, JoinSettings(), mini)
    assert (again.name, again.is_new) == ("mini", False)
    with pytest.raises(UsageError, match="keeps its name"):
        join_cluster(line, JoinSettings(name="other"), mini)


def test_a_machine_of_another_cluster_is_told_so(first, tmp_path):
    """It joins none and begins none before it has left its own."""
    other = place(tmp_path / "other")
    init_cluster(other, name="laptop", address="127.0.0.1:1")
    line = invite_machines(first).line
    with pytest.raises(UsageError, match=r"belongs to a cluster already, as laptop.*another cluster.*cluster leave"):
        join_cluster(line, JoinSettings(), other)
    with desk_of(first):
        mini = place(tmp_path / "mini")
        join_cluster(line, JoinSettings(name="mini"), mini)
    with pytest.raises(UsageError, match=r"belongs to a cluster already, as mini"):
        init_cluster(mini)
    with pytest.raises(UsageError, match="does not have the cluster's authority"):
        invite_machines(mini)


def test_a_line_that_is_late_or_closed_is_refused(first, tmp_path):
    """The refusal says until when it could be used, and where a new one is made."""
    now = [utc_now()]
    with desk_of(first, clock=lambda: now[0]):
        late, closed = invite_machines(first).line, invite_machines(first, life=dt.timedelta(days=1)).line
        now[0] += dt.timedelta(hours=1)
        with pytest.raises(CertificateRefused, match="clocks"):  # as its clock stands too far behind
            join_cluster(late, JoinSettings(), place(tmp_path / "mini"))
        close_invitations(first)
        now[0] = utc_now()
        with pytest.raises(CertificateRefused, match=r"not open.*cluster invite"):
            join_cluster(closed, JoinSettings(), place(tmp_path / "mini"))
        short = invite_machines(first, life=dt.timedelta(minutes=2)).line
        now[0] += dt.timedelta(minutes=3)
        with pytest.raises(CertificateRefused, match=r"has expired.*could be used until.*cluster invite"):
            join_cluster(short, JoinSettings(), place(tmp_path / "mini"))
    with pytest.raises(UsageError, match="up to 7 days"):
        invite_machines(first, life=dt.timedelta(days=8))


def test_a_clock_that_is_wrong_is_named(first, tmp_path):
    """Both times are in the message; no certificate is issued that one of the machines would refuse."""
    with desk_of(first, clock=lambda: utc_now() - dt.timedelta(hours=3)):
        line = invite_machines(first).line
        with pytest.raises(CertificateRefused, match=r"clocks .* differ.*UTC.*UTC.*Set the clock"):
            join_cluster(line, JoinSettings(name="mini"), place(tmp_path / "mini"))
    assert [one.name for one in joined_machines(first)] == ["studio"]


def test_any_address_of_a_line_is_enough(first, tmp_path):
    """Addresses where nobody answers, or another server does, do not keep a machine from joining."""
    with desk_of(first):
        host_line = invite_machines(first, addresses=["127.0.0.9", "::1", "127.0.0.1"]).line
        assert parse_invite(host_line).addresses[1].startswith("[::1]:")
        assert join_cluster(host_line, JoinSettings(name="mini"), place(tmp_path / "mini")).name == "mini"
    with pytest.raises(NodeUnreachable, match=r"at 127\.0\.0\.9:\d+, \[::1\]:\d+, 127\.0\.0\.1.*--address HOST"):
        join_cluster(host_line, JoinSettings(name="box"), place(tmp_path / "box"))
    with pytest.raises(AddressError):
        invite_machines(first, addresses=["no such host!"])


@pytest.mark.parametrize("cut", [1, 20, 30, 95])
def test_a_line_that_was_copied_in_part_is_recognised(first, cut):
    """The message names the length, never the text, which may hold the secret; line breaks do not matter."""
    line = invite_machines(first).line
    assert parse_invite(f"  {line[:50]}\n{line[50:]}\n").text() == line
    for part in (line[:-cut], line[-60:]):
        with pytest.raises(UsageError, match="invitation") as caught:
            parse_invite(part)
        assert part not in str(caught.value)


def test_a_machine_leaves_and_may_join_again(first, tmp_path):
    """Its key is removed, and its name is not used again; the machine with the authority does not leave by accident."""
    mini = place(tmp_path / "mini")
    with desk_of(first):
        line = invite_machines(first).line
        join_cluster(line, JoinSettings(name="mini"), mini)
        assert leave_cluster(mini) == "mini"
        assert not any((tmp_path / "mini" / "tls").iterdir())
        with pytest.raises(IdentityError, match="belongs to no cluster"):
            leave_cluster(mini)
        with pytest.raises(CertificateRefused, match="mini-2"):
            join_cluster(line, JoinSettings(name="mini"), mini)
        assert join_cluster(line, JoinSettings(name="mini-2"), mini).name == "mini-2"
    with pytest.raises(UsageError, match="has the cluster's authority"):
        leave_cluster(first)
    assert leave_cluster(first, end_cluster=True) == "studio"
    assert not first.has_authority
    assert init_cluster(first, name="studio", address="127.0.0.1:1").is_new


def test_another_machine_takes_the_authority_from_a_backup(first, tmp_path):
    """A member that restores it invites others under the same fingerprint; another cluster's machine cannot."""
    mini, file = place(tmp_path / "mini"), tmp_path / "backup"
    back_up(file, "correct horse battery", first)
    assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(UsageError, match="exists already"):
        back_up(file, "correct horse battery", first)
    with desk_of(first):
        join_cluster(invite_machines(first).line, JoinSettings(name="mini"), mini)
    other = place(tmp_path / "other")
    init_cluster(other, name="laptop", address="127.0.0.1:1")
    other.authority_folder.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=r"The backup is that of another cluster"):
        restore(file, "correct horse battery", other)
    assert not other.has_authority
    with kept() as port:
        own = restore(file, "correct horse battery", mini, address=f"127.0.0.1:{port}")
        assert (own.name, own.fingerprint) == ("mini", own_machine(first).fingerprint)
    with desk_of(mini):
        joined = join_cluster(invite_machines(mini).line, JoinSettings(name="box"), place(tmp_path / "box"))
    assert load_identity(tmp_path / "box" / "tls", Role.MEMBER, now=utc_now()).peer.name == joined.name


def test_an_invitation_of_a_machine_that_belongs_to_none_says_how_to_begin(tmp_path):
    """The message names the command that begins a cluster."""
    with pytest.raises(UsageError, match="shardhub cluster init"):
        invite_machines(place(tmp_path))


def test_a_machine_with_a_heads_certificate_only_may_join(first, tmp_path):
    """It joins with a line, and does not count among the machines before."""
    own = place(tmp_path / "laptop")
    authority = Authority.open(first.authority_folder)
    key = new_key()
    certificate = authority.issue(key.public_key(), name="laptop-head", role=Role.HEAD, now=utc_now())
    store_identity(
        own.own_folder,
        Role.HEAD,
        key=key,
        certificate=certificate,
        authority_pem=authority.pem,
        revoked=authority.revocations().pem,
        desk=authority.ledger().desk,
    )
    assert not own.is_member
    assert [each.name for each in joined_machines(first)] == ["studio"]
    with desk_of(first):
        joined = join_cluster(invite_machines(first).line, JoinSettings(name="laptop"), own)
    assert joined.is_new
    assert own.cluster.trust().role is Role.MEMBER
    assert [each.name for each in joined_machines(first)] == ["laptop", "studio"]


def test_a_list_without_machines_is_empty(monkeypatch, capsys):
    """An authority that has certified nobody yet has no machines to list."""
    monkeypatch.setattr("shardhub.usecases.forming.joined_machines", lambda: ())
    assert members(Output()) == 0
    assert capsys.readouterr().out == ""
