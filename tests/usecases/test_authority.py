"""A cluster's authority as a program uses it: init, invite, renew and revoke; nothing is printed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shardhub.errors import UsageError
from shardhub.security.certificates import Role
from shardhub.usecases.authority import (
    CertificateFolders,
    InviteSettings,
    invite,
    issue_certificate,
    make_authority,
    revoke,
    serve_authority,
)
from shardhub.usecases.membership import certificates, join, renew
from tests.ports import kept
from tests.watching import Listener


@pytest.fixture
def folders(tmp_path: Path) -> CertificateFolders:
    """The folders of an authority and of a head."""
    return CertificateFolders(authority=tmp_path / "authority", own=tmp_path / "tls")


def test_a_machine_joins_renews_and_is_revoked(
    folders: CertificateFolders, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each step returns its result; only the caller gets the invitation."""
    other = tmp_path / "other"
    with kept() as port:
        made = make_authority(folders, name="laptop", address=f"127.0.0.1:{port}")
        assert (made.name, made.address) == ("laptop", f"127.0.0.1:{port}")
        settings = InviteSettings(authority=folders.authority, port=0, life_s=60)
        with ThreadPoolExecutor() as machines:
            joining = []

            def bring(line: str) -> None:
                joining.append(machines.submit(join, line, other))

            watcher = Listener()
            assert invite("mini", Role.NODE, settings, watcher, on_line=bring)
            assert joining[0].result().peer.name == "mini"
            assert not watcher.notes
        with serve_authority(folders.authority) as serving:
            assert serving.address == made.address
            assert [peer.name for peer in renew(other)] == ["mini"]
    taken = revoke("mini", folders)
    assert taken.nodes == {}
    assert taken.failures == ()
    state = certificates(folders)
    assert [(one.role, one.peer and one.peer.name) for one in state.own] == [(Role.MEMBER, "laptop")]
    assert state.authority is not None
    assert [(entry.name, entry.revoked_at is not None) for entry in state.authority.ledger.issued] == [
        ("laptop", False),
        ("mini", True),
        ("mini", True),
    ]
    assert capfd.readouterr() == ("", "")


def test_a_certificate_that_is_damaged_is_listed(folders: CertificateFolders) -> None:
    """The list of certificates names a damaged one, with the reason."""
    made = make_authority(folders, name="laptop", address="127.0.0.1:1")
    made.certificate.write_text("nothing")
    (own,) = certificates(folders).own
    assert own.peer is None
    assert own.error is not None


def test_a_name_that_has_a_certificate_is_noted(folders: CertificateFolders, tmp_path: Path) -> None:
    """If a second machine takes the name of a first one, the inviter gets a note."""
    make_authority(folders, name="laptop", address="127.0.0.1:1")
    issue_certificate("mini", Role.NODE, CertificateFolders(authority=folders.authority, own=tmp_path / "mini"))
    watcher = Listener()
    settings = InviteSettings(authority=folders.authority, port=0, life_s=0.01)
    assert not invite("mini", Role.NODE, settings, watcher, on_line=lambda _: None)
    assert "already has a certificate" in watcher.notes[0]


def test_a_cluster_is_not_left_by_accident(folders: CertificateFolders, tmp_path: Path) -> None:
    """A machine that belongs to a cluster cannot start another one in the same folder."""
    make_authority(folders, name="laptop", address="127.0.0.1:1")
    with pytest.raises(UsageError, match="already holds certificates of a cluster"):
        make_authority(CertificateFolders(authority=tmp_path / "second", own=folders.own), name="laptop")
