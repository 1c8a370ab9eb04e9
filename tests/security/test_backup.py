"""A backup of the authority: another machine takes its place, and nobody reads it without the passphrase."""

from __future__ import annotations

import json

import pytest

from shardhub.errors import AccessError, FormatError, UsageError
from shardhub.security.authority import KEY_FILE, Authority
from shardhub.security.backup import make_backup, restore_backup
from shardhub.security.certificates import Role, new_key
from tests.security.cluster import NOW, Cluster

PASSPHRASE = "correct horse battery staple"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("backup") / "one", desk="192.168.1.5:50049")
    made.issue("mini", Role.MEMBER)
    made.issue("lost", Role.MEMBER)
    made.authority.revoke("lost", now=NOW)
    return made


@pytest.fixture(scope="module")
def backup(cluster):
    return make_backup(cluster.authority, PASSPHRASE)


def test_a_restored_authority_goes_on(cluster, backup, tmp_path):
    """It has the same key, knows names and revocations, and its files are private."""
    restored = restore_backup(backup, PASSPHRASE, tmp_path / "authority", where="backup")
    assert restored.fingerprint == cluster.authority.fingerprint
    assert restored.free_name("mini") == "mini-2"
    assert restored.revocations().serials == cluster.authority.revocations().serials
    assert (tmp_path / "authority" / KEY_FILE).stat().st_mode & 0o077 == 0
    key = new_key()
    made = restored.issue(key.public_key(), name="box", role=Role.NODE, now=NOW)
    made.verify_directly_issued_by(cluster.authority.certificate)
    with pytest.raises(UsageError, match="already holds an authority"):
        restore_backup(backup, PASSPHRASE, tmp_path / "authority", where="backup")


def test_lists_of_a_moved_authority_are_newer_than_any_before(cluster, backup, tmp_path):
    """Machines heed what is revoked after the move, though the backup does not know the lists made after it."""
    restored = restore_backup(backup, PASSPHRASE, tmp_path / "authority", where="backup")
    for _ in range(3):
        latest = cluster.authority.revoke("lost", now=NOW)
    restored.move("192.168.1.6:50049", now=NOW)
    assert restored.revocations().number > latest.number
    assert restored.revocations().serials == latest.serials
    assert Authority.open(tmp_path / "authority").ledger().desk == "192.168.1.6:50049"


def test_a_backup_says_nothing_without_the_passphrase(cluster, backup, tmp_path):
    """A wrong passphrase and a changed file are refused, and leave no authority behind."""
    key = (cluster.authority.folder / KEY_FILE).read_text().splitlines()[1].encode()
    assert key not in backup
    changed = json.loads(backup)
    changed["files"] = "AAAA" + changed["files"][4:]
    for data, passphrase in ((backup, PASSPHRASE + "s"), (json.dumps(changed).encode(), PASSPHRASE)):
        with pytest.raises(AccessError, match="cannot be opened with this passphrase"):
            restore_backup(data, passphrase, tmp_path / "authority", where="backup")
    with pytest.raises(FormatError):
        restore_backup(b"{}", PASSPHRASE, tmp_path / "authority", where="backup")
    assert not (tmp_path / "authority" / KEY_FILE).exists()
    with pytest.raises(UsageError, match="fewer than 10 characters"):
        make_backup(cluster.authority, "secret")
