"""The authority, its certificates and its revocation list."""

from __future__ import annotations

import base64
import datetime as dt
import ssl
import stat

import pytest

from shardhub.errors import CertificateRefused, IdentityError, UsageError
from shardhub.security.authority import KEY_FILE, LEDGER_FILE, Authority
from shardhub.security.certificates import (
    LIFE,
    Role,
    check_issued,
    key_pem,
    load_certificate,
    make_request,
    new_key,
    peer_of,
    requested_key,
)
from shardhub.security.files import exposes
from shardhub.security.identity import identity_file, load_identity
from shardhub.security.revocations import read_revocations
from shardhub.security.trust import Trust
from tests.security.cluster import NOW, Cluster

DAY = dt.timedelta(days=1)


def crl_der(pem: bytes) -> bytes:
    return base64.b64decode(b"".join(pem.splitlines()[1:-1]))


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path / "one")


def test_certificate_says_who_and_not_where(cluster):
    """A certificate has role and name and is signed by the authority; it has no address."""
    identity = load_identity(cluster.issue("mini", Role.NODE), Role.NODE, now=NOW)
    assert (identity.peer.name, identity.peer.role) == ("mini", Role.NODE)
    assert identity.peer.not_after == NOW + LIFE
    check_issued(load_certificate(identity.chain_pem), cluster.authority.certificate)


def test_another_authoritys_certificate_is_refused(cluster, tmp_path):
    """A certificate of another cluster is refused, even if both clusters have the same name."""
    other = Cluster(tmp_path / "two")
    identity = load_identity(other.issue("mini", Role.NODE), Role.NODE, now=NOW)
    with pytest.raises(CertificateRefused, match="another authority"):
        check_issued(load_certificate(identity.chain_pem), cluster.authority.certificate)


@pytest.mark.parametrize("name", ["", "Mini", "a.b", "-a", "a-", "a" * 64, "a/b", "a:b", "ä", "a\nb", "authority"])
def test_a_name_that_cannot_be_a_label_is_refused(cluster, name):
    """Names in certificates are plain labels, and never the authority's own."""
    with pytest.raises(UsageError):
        cluster.issue(name, Role.NODE, place="x")


def test_an_authority_is_made_once(cluster):
    """A second `init` in the same folder does not replace a cluster's key."""
    with pytest.raises(UsageError):
        Authority.create(cluster.authority.folder, now=NOW)
    assert Authority.open(cluster.authority.folder).fingerprint == cluster.authority.fingerprint


def test_keys_are_private_from_the_start(cluster):
    """Files with keys are readable by their owner alone."""
    folder = cluster.issue("mini", Role.NODE)
    for path in (cluster.authority.folder / KEY_FILE, identity_file(folder, Role.NODE)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_is_open_to_others_is_refused(cluster, mode):
    """An authority's or machine's key that a group or all users may read is refused."""
    folder = cluster.issue("mini", Role.NODE)
    identity_file(folder, Role.NODE).chmod(mode)
    with pytest.raises(IdentityError, match="other users can read it"):
        load_identity(folder, Role.NODE, now=NOW)
    (cluster.authority.folder / KEY_FILE).chmod(mode)
    with pytest.raises(IdentityError, match="other users can read it"):
        Authority.open(cluster.authority.folder)


@pytest.mark.parametrize(
    ("mode", "owner", "user", "is_exposed"),
    [
        (0o600, 1000, 1000, False),
        (0o640, 1000, 1000, True),
        (0o440, 0, 10001, False),  # a Secret of Kubernetes, mounted for a pod's group
        (0o640, 0, 10001, False),
        (0o660, 0, 10001, True),
        (0o444, 0, 10001, True),
        (0o640, 0, 0, True),
        (0o440, 1000, 10001, True),
    ],
)
def test_a_group_may_read_only_what_root_gave_it(mode, owner, user, is_exposed):
    """A key that root lets a group read is accepted by another user's process; nothing else beyond the owner is."""
    assert exposes(mode, owner=owner, user=user) == is_exposed


def test_an_expired_certificate_is_not_used(cluster):
    """A certificate is valid from its start to its end by the machine's own clock."""
    folder = cluster.issue("mini", Role.NODE)
    with pytest.raises(IdentityError, match="expired"):
        load_identity(folder, Role.NODE, now=NOW + LIFE)
    with pytest.raises(IdentityError, match="not valid yet"):
        load_identity(folder, Role.NODE, now=NOW - DAY)


def test_a_role_is_not_taken_for_the_other(cluster):
    """A head's certificate is refused in the place of a node's."""
    folder = cluster.issue("laptop", Role.HEAD)
    with pytest.raises(IdentityError, match="for a head"):
        load_identity(folder, Role.NODE, now=NOW)
    identity_file(folder, Role.HEAD).rename(identity_file(folder, Role.NODE))
    with pytest.raises(IdentityError, match="damaged"):
        load_identity(folder, Role.NODE, now=NOW)


def test_a_damaged_key_file_tells_nothing_of_its_content(cluster):
    """The error for a broken file quotes none of it, nor do its causes."""
    path = identity_file(cluster.issue("mini", Role.NODE), Role.NODE)
    text = path.read_text().replace("-----END PRIVATE KEY-----", "")
    path.write_text(text)
    with pytest.raises(IdentityError) as caught:
        load_identity(path.parent, Role.NODE, now=NOW)
    secret = text.splitlines()[1]
    assert secret[:20] not in str(caught.value)
    assert caught.value.__cause__ is None
    assert secret[:20] not in repr(caught.value)


def test_a_revoked_name_never_comes_back(cluster):
    """Revoking a name revokes all its certificates, and the name cannot be issued again."""
    first, second = (cluster.trust("mini", Role.NODE).identity.peer for _ in range(2))
    other = cluster.trust("studio", Role.NODE).identity.peer
    made = cluster.authority.revoke("mini", now=NOW)
    assert {first.serial, second.serial} == made.serials
    assert other.serial not in made.serials
    with pytest.raises(CertificateRefused, match="was revoked"):
        cluster.issue("mini", Role.NODE)
    with pytest.raises(UsageError, match="studio"):
        cluster.authority.revoke("nobody", now=NOW)


def test_lists_count_up_and_keep_what_was_revoked(cluster):
    """Each list has a higher number and all serials of its predecessor."""
    one, two = (cluster.trust(name, Role.NODE).identity.peer for name in ("one", "two"))
    first = cluster.authority.revoke("one", now=NOW)
    second = cluster.authority.revoke("two", now=NOW)
    assert second.number == first.number + 1
    assert second.serials == {one.serial, two.serial}
    assert cluster.authority.revocations() == second


def test_a_forged_list_is_refused(cluster, tmp_path):
    """A list of another authority, a modified one and random bytes are refused and change nothing."""
    trust = cluster.trust("mini", Role.NODE)
    other = Cluster(tmp_path / "two")
    other.trust("mini", Role.NODE)
    forged = other.authority.revoke("mini", now=NOW).pem
    der = bytearray(crl_der(cluster.authority.revocations().pem))
    der[-1] ^= 1  # of the signature
    broken = b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(bytes(der)) + b"-----END X509 CRL-----\n"
    before = trust.revocations
    for data in (forged, broken, b"", b"-----BEGIN X509 CRL-----\n", bytes(2 << 20)):
        with pytest.raises(CertificateRefused):
            trust.learn(data)
    assert trust.revocations == before


def test_an_older_list_is_not_taken(cluster):
    """A machine never replaces its revocation list with an older one, from the network or from a file."""
    trust = cluster.trust("mini", Role.NODE)
    old = cluster.authority.revocations().pem
    peer = cluster.trust("laptop", Role.HEAD).identity.peer
    assert trust.learn(cluster.authority.revoke("laptop", now=NOW).pem)
    assert not trust.learn(old)
    (trust.folder / "revoked.pem").write_bytes(old)
    trust.reread()
    assert trust.is_revoked(peer)
    with pytest.raises(CertificateRefused, match="revoked"):
        trust.check(peer)


def test_a_list_is_kept_for_the_next_start(cluster):
    """A list that a process received is loaded by the next one on the machine; watchers are notified once."""
    trust, changes = cluster.trust("mini", Role.NODE), []
    unwatch = trust.watch(lambda: changes.append(1))
    peer = cluster.trust("laptop", Role.HEAD).identity.peer
    made = cluster.authority.revoke("laptop", now=NOW)
    trust.learn(made.pem)
    trust.learn(made.pem)
    assert changes == [1]
    assert Trust(trust.folder, Role.NODE, clock=lambda: NOW).is_revoked(peer)
    unwatch()
    trust.learn(cluster.authority.revoke("mini", now=NOW).pem)
    assert changes == [1]


def test_a_list_put_into_the_folder_is_heard(cluster):
    """A list copied into the folder by hand counts like a received one."""
    trust, changes = cluster.trust("mini", Role.NODE), []
    trust.watch(lambda: changes.append(1))
    cluster.trust("laptop", Role.HEAD)
    (trust.folder / "revoked.pem").write_bytes(cluster.authority.revoke("laptop", now=NOW).pem)
    trust.reread()
    assert changes == [1]


def test_the_ledger_forgets_what_ended_long_ago(cluster):
    """Certificates that ended are dropped from the ledger; revoked ones stay."""
    cluster.issue("old", Role.NODE, now=NOW - 3 * LIFE)
    cluster.issue("bad", Role.NODE, now=NOW - 3 * LIFE)
    cluster.authority.revoke("bad", now=NOW - 3 * LIFE)
    cluster.issue("new", Role.NODE)
    assert {one.name for one in cluster.authority.ledger().issued} == {"bad", "new"}
    assert (cluster.authority.folder / LEDGER_FILE).stat().st_mode & 0o077 == 0


def test_a_signing_request_proves_the_key(cluster):
    """A changed request and random bytes are refused; a good request contains no private key."""
    key = new_key()
    request = make_request(key)
    assert requested_key(request) == key.public_key()
    assert not set(key_pem(key).splitlines()[1:-1]) & set(request.splitlines())
    der = bytearray(ssl.PEM_cert_to_DER_cert(request.decode().replace("CERTIFICATE REQUEST", "CERTIFICATE")))
    der[-1] ^= 1  # of the signature
    changed = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST").encode()
    for data in (b"", b"rubbish", changed):
        with pytest.raises(CertificateRefused):
            requested_key(data)


def test_a_certificate_without_our_names_stands_for_nobody(cluster):
    """A certificate without our name, such as the authority's own, is refused as a machine's."""
    with pytest.raises(CertificateRefused):
        peer_of(cluster.authority.certificate)
    assert read_revocations(cluster.authority.revocations().pem, cluster.authority.certificate).serials == frozenset()
