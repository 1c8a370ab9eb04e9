"""A Hub over TLS: the real client with a bundle of roots, shardhub's own commands without one, and all that fails."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from shardhub.errors import CertificateRefused, HubRefused, HubUnreachable, IdentityError
from shardhub.hub import cluster_trust
from shardhub.hub.calls import HubCalls
from shardhub.hub.client import hub_api
from shardhub.hub.holders import agree_on_transfer, own_transfer
from shardhub.localhub import doorway, server
from shardhub.localhub.server import RunningHub, ServerSettings, running_hub
from shardhub.security.certificates import Role
from shardhub.security.hub_certificate import HubCertificate
from shardhub.usecases.bundle import write_bundle
from shardhub.usecases.mirror import MirrorSettings, mirror
from tests.security.cluster import NOW, Cluster
from tests.waiting import wait_until

# huggingface_hub 2.4.0 sends LFS bytes in a way httpx2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

# The real client in a process of its own, with no setting but its home, the Hub, the token and the roots.
STOCK = """
import json, sys
from huggingface_hub import CommitOperationAdd, HfApi, constants
api, repo = HfApi(), "ann/" + sys.argv[1]
api.create_repo(repo, private=True)
api.upload_file(path_or_fileobj=bytes(300_000) + b"w", path_in_repo="w.safetensors", repo_id=repo)
api.create_commit(repo, [CommitOperationAdd("README.md", b"---\\nlicense: mit\\n---\\n# card")], commit_message="card")
content = open(api.hf_hub_download(repo, "w.safetensors"), "rb").read()
print(json.dumps({"size": len(content), "files": api.list_repo_files(repo), "lfs": constants.HF_HUB_DISABLE_XET}))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A cluster with a head, whose folder a joined machine would have."""
    made = Cluster(tmp_path_factory.mktemp("tls") / "cluster")
    made.issue("laptop", Role.HEAD, place="own")
    return made


@pytest.fixture
def own(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The certificates of this machine, which belongs to the cluster; clients are new in each test."""
    monkeypatch.setenv("SHARDHUB_TLS", str(cluster.folder / "own"))
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setattr(cluster_trust, "_named", set())
    huggingface_hub.close_session()
    yield cluster.folder / "own"
    huggingface_hub.close_session()


@pytest.fixture(scope="module")
def secured(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """A Hub that is served over TLS."""
    settings = ServerSettings(certificate=cluster.hub("127.0.0.1", "localhost"))
    with running_hub(tmp_path_factory.mktemp("secured") / "hub", settings) as running:
        yield running


@contextlib.contextmanager
def served(folder: Path, certificate: HubCertificate | None) -> Iterator[RunningHub]:
    with running_hub(folder / "hub", ServerSettings(certificate=certificate)) as running:
        yield running


def account(endpoint: str, token: str = "hf_none") -> str:
    """Ask a Hub, as shardhub's commands do, whose a token is."""
    return HubCalls(api=hub_api(endpoint, token)).account().name


@pytest.mark.parametrize("name", ["xet", "lfs"])
def test_the_stock_client_uploads_and_downloads(secured: RunningHub, own: Path, tmp_path: Path, name: str) -> None:
    """With the bundle, and no other setting, the real client creates, uploads, commits and downloads."""
    environment = {
        "HOME": str(tmp_path),
        "PATH": "",
        "HF_ENDPOINT": secured.endpoint,
        "HF_TOKEN": secured.token("ann"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "SSL_CERT_FILE": str(write_bundle().path),
        **({"HF_HUB_DISABLE_XET": "1"} if name == "lfs" else {}),
    }
    command = [sys.executable, "-W", "ignore", "-c", STOCK, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["size"] == 300_001
    assert set(record["files"]) >= {"README.md", "w.safetensors"}
    assert record["lfs"] == (name == "lfs")


def test_a_machine_of_the_cluster_needs_no_setting(secured: RunningHub, own: Path) -> None:
    """shardhub's client trusts the cluster's authority for a Hub that it was given."""
    assert secured.endpoint.startswith("https://")
    assert account(secured.endpoint, secured.token("ann")) == "ann"
    api = hub_api(secured.endpoint, secured.token("ann"))
    assert api.create_repo("ann/m").startswith("https://127.0.0.1:")


def test_files_go_from_one_hub_of_the_cluster_to_another(
    cluster: Cluster, secured: RunningHub, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mirroring reads a Hub's weights and sends them to another one, both over TLS, without any setting for it."""
    api = hub_api(secured.endpoint, secured.token("org"))
    api.create_repo("org/weights", private=True)
    add = CommitOperationAdd("w.safetensors", bytes(50_000))
    with own_transfer():
        agree_on_transfer(HubCalls(api=api), "org/weights")
        api.create_commit("org/weights", [add], commit_message="weights")
    with served(tmp_path, cluster.hub("127.0.0.1", name="second")) as target:
        monkeypatch.setenv("HF_ENDPOINT", target.endpoint)
        monkeypatch.setenv("HF_TOKEN", target.token("ann"))
        monkeypatch.setenv("SHARDHUB_SOURCE_TOKEN", secured.token("org", role="read"))
        done = mirror(f"{secured.endpoint}/org/weights", MirrorSettings(cache_dir=tmp_path / "cache"))
        assert (done.repo, done.sent_bytes) == ("ann/weights", 50_000)


def test_no_other_address_profits(secured: RunningHub, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with the cluster's certificate is trusted neither elsewhere nor as the public Hub."""
    hub_api("https://hub.example.org", False)
    session = huggingface_hub.get_session()
    with pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
        session.get(f"{secured.endpoint}/api/models")
    monkeypatch.setattr(cluster_trust, "PUBLIC_ENDPOINT", secured.endpoint)
    with pytest.raises(HubUnreachable, match="does not trust the certificate"):
        account(secured.endpoint)


def test_public_roots_stay_trusted_for_a_named_hub(cluster: Cluster, own: Path, tmp_path: Path) -> None:
    """A Hub whose certificate a public root issued is trusted beside the cluster's own."""
    public = Cluster(tmp_path / "public")
    roots = tmp_path / "roots.pem"
    roots.write_bytes(public.authority.pem)
    with pytest.MonkeyPatch.context() as patch, served(tmp_path, public.hub("127.0.0.1")) as hub:
        patch.setenv("SSL_CERT_FILE", str(roots))
        assert account(hub.endpoint, hub.token("ann")) == "ann"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda ours, _: ours.hub("192.168.1.5", name="elsewhere"), "The certificate is not for 127.0.0.1."),
        (lambda _, other: other.hub("127.0.0.1"), "Neither a public authority nor this machine's cluster"),
        (
            lambda ours, _: ours.hub("127.0.0.1", name="old", now=NOW - dt.timedelta(days=99)),
            "The certificate has expired",
        ),
        (
            lambda ours, _: ours.hub("127.0.0.1", name="early", now=NOW + dt.timedelta(days=9)),
            "The certificate is not valid yet",
        ),
        (lambda *_: None, "did not answer the handshake in TLS"),
    ],
    ids=["another host", "another cluster", "expired", "of tomorrow", "plain HTTP"],
)
def test_what_cannot_be_trusted_is_explained(
    cluster: Cluster,
    own: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    make: Callable[..., HubCertificate | None],
    reason: str,
) -> None:
    """Each fault of a Hub's certificate has a message of its own, at once, and nothing is sent."""
    other = Cluster(tmp_path / "other")
    with served(tmp_path, make(cluster, other)) as hub:
        address = f"https://127.0.0.1:{hub.port}"
        waits: list[str] = []
        with pytest.raises(HubUnreachable) as refused:
            HubCalls(api=hub_api(address, "hf_x"), notice=waits.append).account()
        assert reason in refused.value.why
        assert address in refused.value.what
        assert refused.value.hint
        calls = HubCalls(api=hub_api(address, "hf_x"), notice=waits.append)
        with pytest.raises(HubUnreachable):  # a call that the client repeats by itself
            calls.run(lambda: list(calls.api.list_models()), what="searching")
        assert waits == []
        assert "Retrying" not in caplog.text


def test_plain_requests_to_a_tls_port_are_answered(secured: RunningHub, own: Path) -> None:
    """A client that calls http is told to call https, and that its token came unencrypted."""
    address = f"http://127.0.0.1:{secured.port}"
    with pytest.raises(HubRefused) as refused:
        account(address, "hf_secret")
    assert "speaks https only" in refused.value.why
    assert "revoke it" in refused.value.why
    with pytest.raises(huggingface_hub.errors.BadRequestError, match="write https instead of http"):
        HfApi(endpoint=address, token=False).model_info("ann/m")


def test_a_revoked_hub_and_a_node_are_refused(cluster: Cluster, own: Path, tmp_path: Path) -> None:
    """A Hub whose certificate was revoked is refused before a token is sent, and so is a node under its address."""
    with served(tmp_path, cluster.hub("127.0.0.1", name="stolen")) as hub:
        token = hub.token("ann")
        assert account(hub.endpoint, token) == "ann"
        (own / "revoked.pem").write_bytes(cluster.authority.revoke("stolen", now=NOW).pem)
        huggingface_hub.close_session()
        with pytest.raises(CertificateRefused, match="the hub stolen was revoked"):
            account(hub.endpoint, token)
    node = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    node.load_cert_chain(cluster.issue("mini", Role.NODE) / "node.pem")
    posing = cluster.hub("127.0.0.1", name="posing")
    posing.context = node
    with served(tmp_path / "posing", posing) as hub:
        with pytest.raises(HubUnreachable, match="does not trust"):
            account(hub.endpoint)
        with pytest.raises(HubUnreachable, match="does not trust"):
            account(f"https://localhost:{hub.port}")


def test_a_renewed_certificate_is_shown_without_a_restart(
    cluster: Cluster, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running Hub renews its certificate, and new connections are shown the new one."""
    monkeypatch.setattr(server, "_REFRESH_S", 0.01)
    passed = dt.timedelta(0)
    certificate = cluster.hub("127.0.0.1", name="renewing", clock=lambda: NOW + passed)
    first = certificate.identity.chain_pem.decode()
    with served(tmp_path, certificate) as hub:
        assert ssl.get_server_certificate(("127.0.0.1", hub.port)) == first
        passed = dt.timedelta(days=61)
        wait_until(lambda: ssl.get_server_certificate(("127.0.0.1", hub.port)) != first)
        assert account(hub.endpoint, hub.token("ann")) == "ann"


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"], ids=["silent", "half a handshake"])
def test_clients_without_a_handshake_lock_nobody_out(
    cluster: Cluster, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """With more unfinished handshakes than the limit, others are answered, and the oldest are ended."""
    monkeypatch.setattr(doorway, "MAX_HANDSHAKES", 20)
    with served(tmp_path, cluster.hub("127.0.0.1", name="busy")) as hub, contextlib.ExitStack() as stack:
        connections = []
        for _ in range(60):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", hub.port), timeout=60))
            connection.sendall(sent)
            connections.append(connection)
        assert account(hub.endpoint, hub.token("ann")) == "ann"
        for connection in connections[:39]:  # all but the limit, and the one that was answered
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""


def test_a_client_that_never_finishes_its_handshake_is_let_go(
    cluster: Cluster, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that sends nothing, or half a plain request and then nothing, ends after the time for it."""
    monkeypatch.setattr(server, "_STALL_S", 0.2)
    with served(tmp_path, cluster.hub("127.0.0.1", name="waiting")) as hub:
        for sent in (b"", b"GET / HT"):
            with socket.create_connection(("127.0.0.1", hub.port), timeout=60) as connection:
                connection.sendall(sent)
                with connection.makefile("rb") as answer:
                    assert answer.read().startswith(b"HTTP/1.1 400" if sent else b"")


def test_the_bundle_keeps_the_public_roots(
    cluster: Cluster, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the roots in use and the authority, also if it is made again where it is in use already."""
    roots = tmp_path / "roots.pem"
    roots.write_bytes(Cluster(tmp_path / "public").authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))
    made = write_bundle()
    assert (made.roots, made.num_roots) == (roots, 1)
    assert made.path.read_bytes() == roots.read_bytes() + cluster.authority.pem
    monkeypatch.setenv("SSL_CERT_FILE", str(made.path))
    again = write_bundle()
    assert again.roots not in (roots, again.path)
    assert len(ssl.create_default_context(cafile=str(again.path)).get_ca_certs()) > 1
    with pytest.raises(IdentityError, match="does not name an authority"):
        write_bundle(tmp_path)
