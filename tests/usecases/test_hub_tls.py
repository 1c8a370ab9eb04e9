"""Which certificate a Hub is served with: none on loopback, else one from the authority, here or elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shardhub.errors import AddressError, CertificateRefused, IdentityError, NodeUnreachable, UsageError
from shardhub.listening import own_addresses
from shardhub.localhub.server import ServerSettings, running_hub
from shardhub.security.certificates import Role, hub_hosts
from shardhub.usecases.authority import CertificateFolders, issue_certificate, make_authority, serve_authority
from shardhub.usecases.hub_tls import hub_certificate
from tests.ports import kept
from tests.security.cluster import Cluster


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CertificateFolders]:
    """This user's folders, with an authority whose desk is on loopback."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SHARDHUB_TLS", raising=False)
    made = CertificateFolders()
    with kept() as port:
        make_authority(made, name="studio", address=f"127.0.0.1:{port}")
        yield made


def test_loopback_is_plain_unless_certificates_are_named(folders: CertificateFolders) -> None:
    """Without a named folder a Hub on loopback has no certificate; with one it is certified for loopback's names."""
    assert hub_certificate("127.0.0.1") is None
    assert hub_certificate("0.0.0.0", insecure_lan=True) is None
    named = hub_certificate("127.0.0.1", tls=folders.own_folder)
    assert named is not None
    assert named.hosts == hub_hosts("studio")
    with pytest.raises(UsageError, match="cannot be combined"):
        hub_certificate("127.0.0.1", tls=folders.own_folder, insecure_lan=True)


def test_the_authoritys_machine_certifies_its_own_hub(folders: CertificateFolders) -> None:
    """It carries every address where the Hub listens on all, the public URL's host, and the machine's name."""
    made = hub_certificate("0.0.0.0", public_url="https://hub.example.org:8090")
    assert made is not None
    assert made.hosts == hub_hosts("studio") | {*own_addresses(), "hub.example.org"}
    assert made.identity.path == folders.own_folder / "hub.pem"
    again = hub_certificate("0.0.0.0")
    assert again is not None
    assert again.identity.peer.serial == made.identity.peer.serial


def test_a_machine_that_joined_asks_the_authority(
    folders: CertificateFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is certified by the authority's desk while that runs, keeps what it got, and says where nobody answered."""
    mini = CertificateFolders(authority=folders.authority_folder, own=tmp_path / "mini")
    issue_certificate("mini", Role.NODE, mini)
    elsewhere = tmp_path / "no-authority"
    with pytest.raises(NodeUnreachable, match="does not answer, and this machine's Hub needs a certificate") as refused:
        hub_certificate("0.0.0.0", tls=mini.own, authority=elsewhere)
    assert "shardhub certs serve" in refused.value.hint
    with serve_authority():
        made = hub_certificate("0.0.0.0", tls=mini.own, authority=elsewhere)
        assert made is not None
        assert made.hosts == hub_hosts("mini")
        with pytest.raises(CertificateRefused, match=r"for hub\.example\.org"):
            hub_certificate("0.0.0.0", public_url="https://hub.example.org", tls=mini.own, authority=elsewhere)
    kept_one = hub_certificate("0.0.0.0", tls=mini.own, authority=elsewhere)
    assert kept_one is not None
    assert kept_one.identity.peer.serial == made.identity.peer.serial


def test_without_certificates_a_hub_does_not_leave_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of no cluster is told how to get a certificate; a named folder must have one."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SHARDHUB_TLS", raising=False)
    settings = ServerSettings(host="0.0.0.0", certificate=hub_certificate("0.0.0.0"))
    with pytest.raises(AddressError, match="Refusing") as refused, running_hub(tmp_path / "hub", settings):
        pass
    assert "shardhub certs join" in refused.value.hint
    with pytest.raises(IdentityError, match="neither a head's nor a node's"):
        hub_certificate("127.0.0.1", tls=tmp_path)


def test_another_clusters_authority_here_certifies_nothing(folders: CertificateFolders, tmp_path: Path) -> None:
    """A machine with the authority of one cluster and the certificates of another asks the other's authority."""
    other = Cluster(tmp_path / "other", desk="127.0.0.1:1").issue("mini", Role.NODE)
    with pytest.raises(NodeUnreachable, match=r"authority at 127\.0\.0\.1:1"):
        hub_certificate("127.0.0.1", tls=other)
