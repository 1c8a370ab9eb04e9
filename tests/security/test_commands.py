"""The certificate and signature commands, in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shardhub.errors import DigestMismatch, IdentityError, SignatureError, UsageError
from shardhub.security.certificates import Role
from shardhub.security.folders import default_folder
from shardhub.security.signatures import make_signing_key
from shardhub.usecases.choose_shards import choose_shards
from shardhub.usecases.places import Places
from shardhub.usecases.signing import check_pipeline
from shardhub.usecases.trust import head_security, node_trust
from shardhub.usecases.verify_files import VerifySettings, verify_files
from tests import cut, forks, nodes, tiny
from tests.nodes import Node, shardhub
from tests.ports import kept
from tests.security.cluster import Cluster
from tests.watching import Listener

CERTS = (sys.executable, "-m", "shardhub", "certs")


@pytest.fixture
def home(tmp_path):
    """A user's own configuration folder, and the environment that selects it."""
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "SHARDHUB_TLS": "", "SHARDHUB_NODES": ""}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A tiny pipeline in two shards, with a tokenizer."""
    folder = tmp_path_factory.mktemp("commands")
    model = cut.tiny_model(folder / "model")
    tiny.save_tokenizer(model)
    return cut.cut(model, folder / "out", (3,))


@contextlib.contextmanager
def started(*arguments: str, env):
    """A long-running `certs` command; yields the process and the first line that it printed."""
    process = forks.popen(
        ["certs", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill() if process.poll() is None else None
        process.communicate()


def certs(*arguments: object, env, stdin: str = ""):
    return shardhub("certs", *arguments, env=env, stdin=stdin)


def test_machines_join_run_and_are_revoked(home, pipeline, tmp_path):
    """An authority is made, a node joins over the network, a head is answered over TLS, then revoked."""
    made = certs("init", "--name", "laptop", "--address", "127.0.0.1:1", "--json", env=home)
    assert made.returncode == 0, made.stderr
    tls = tmp_path / "config" / "shardhub" / "tls"
    other = {**home, "XDG_CONFIG_HOME": str(tmp_path / "other")}
    with started("invite", "mini", env=home) as (process, line):
        joined = certs("join", "-", "--json", env=other, stdin=line + "\n")
        assert joined.returncode == 0, joined.stderr
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "mini has joined as a member" in errors
    secret = line.rpartition("/")[2]
    assert len(secret) > 20
    keys = [
        path.read_text().splitlines()[1]
        for path in (tls / "member.pem", Path(json.loads(joined.stdout)["certificate"]))
    ]
    node_tls = Path(json.loads(joined.stdout)["certificate"]).parent
    served = [
        Node(cut.shard_folder(pipeline, index), options=("--tls", str(node_tls), "--context", "64"), env=other)
        for index in (0, 1)
    ]
    try:
        addresses = [option for node in served for option in ("--node", node.wait_ready().address)]
        assert served[0].ready["tls"] == "mini"
        ask = (
            "generate",
            pipeline.folder,
            *addresses,
            "--no-local",
            "--raw",
            "-p",
            "abc",
            "--max-tokens",
            "4",
            "--json",
        )
        answer = shardhub(*ask, "--tls", tls, env=home)
        assert answer.returncode == 0, answer.stderr
        assert len(json.loads(answer.stdout)["tokens"]) == 4
        # The two nodes are neighbours: hidden states went from one to the other, by their own certificate.
        assert [stage["next"] for stage in json.loads(answer.stdout)["stages"]] == ["dial", "end"]
        state = shardhub("status", pipeline.folder, *addresses, "--tls", tls, "--json", env=home)
        assert json.loads(state.stdout)["can_run"]
        revoked = certs("revoke", "laptop", *addresses, "--json", env=home)
        assert revoked.returncode == 0, revoked.stderr
        assert [informed["error"] for informed in json.loads(revoked.stdout)["told"]] == [None, None]
        refused = shardhub(*ask, "--tls", tls, env=home)
        assert refused.returncode == 4
        assert "revoked" in refused.stderr
        texts = [one.stdout + one.stderr for one in (made, joined, answer, state, revoked, refused)]
        texts += [out, errors, *(node.errors() for node in served)]
    finally:
        nodes.stop_all(served)
    for text in texts:
        assert secret not in text
        assert not any(key in text for key in keys)


def test_the_secret_leaves_the_argument_list(home):
    """A secret given as an argument is removed from the process list before the network is used."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        secret = "S" * 27
        line = f"127.0.0.1:{server.getsockname()[1]}/{'ab' * 32}/{secret}"
        process = subprocess.Popen(
            [*CERTS, "join", line], stderr=subprocess.PIPE, text=True, env={**os.environ, **home}
        )
        server.settimeout(60)
        connection, _ = server.accept()  # it asks now, and gets no answer
        with connection:
            arguments = Path(f"/proc/{process.pid}/cmdline")
            if arguments.exists():
                assert secret not in arguments.read_text()
                assert b"join" in arguments.read_bytes()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 5
    assert secret not in errors


def test_an_invitation_that_nobody_uses_ends(home):
    """An unused invitation ends by itself, with exit code 1."""
    assert certs("init", "--name", "laptop", "--address", "127.0.0.1:1", env=home).returncode == 0
    start = time.monotonic()
    done = certs("invite", "mini", "--minutes", "0.02", env=home)
    assert done.returncode == 1
    assert "not used" in done.stderr
    assert time.monotonic() - start < 120
    shown = json.loads(certs("show", "--json", env=home).stdout)
    assert [one["name"] for one in shown["authority"]["issued"]] == ["laptop"]


def test_certificates_are_renewed_where_the_authority_serves(home):
    """`certs serve` renews on request of `certs renew`, and ends with 0 on SIGTERM."""
    with kept() as port:
        certs("init", "--name", "laptop", "--address", f"127.0.0.1:{port}", env=home)
        with started("serve", env=home) as (process, address):
            assert address == f"127.0.0.1:{port}"
            renewed = certs("renew", "--json", env=home)
            assert renewed.returncode == 0, renewed.stderr
            assert [(one["name"], one["role"]) for one in json.loads(renewed.stdout)] == [("laptop", "member")]
            process.terminate()
            assert process.wait(60) == 0
    issued = json.loads(certs("show", "--json", env=home).stdout)["authority"]["issued"]
    assert [one["name"] for one in issued] == ["laptop", "laptop"]


def test_a_node_without_certificate_listens_on_loopback_alone(home, pipeline, monkeypatch):
    """Off loopback a node needs a certificate or the explicit option, and the error names both."""
    done = shardhub("serve", cut.shard_folder(pipeline, 0), "--host", "0.0.0.0", "--port", "0", env=home)
    assert done.returncode == 2
    assert "certs join" in done.stderr
    assert "--insecure-lan" in done.stderr
    for name, value in home.items():
        monkeypatch.setenv(name, value)
    assert node_trust(None, insecure_lan=False, is_loopback=False) is None
    assert node_trust(None, insecure_lan=True, is_loopback=False) is None
    with pytest.raises(UsageError):
        node_trust(Path("x"), insecure_lan=True, is_loopback=False)
    for is_loopback in (True, False):  # what was named is used or refused, never passed over
        with pytest.raises(IdentityError):
            node_trust(Path("nowhere"), insecure_lan=False, is_loopback=is_loopback)
    monkeypatch.setenv("SHARDHUB_TLS", "nowhere")
    with pytest.raises(IdentityError):
        head_security(None, insecure_lan=False)


def test_a_certificate_that_is_kept_is_for_other_machines(home, tmp_path, monkeypatch):
    """The certificate from `certs join` is used off loopback without an option, and not on loopback."""
    for name, value in home.items():
        monkeypatch.setenv(name, value)
    cluster = Cluster(tmp_path / "one")
    default_folder().parent.mkdir(parents=True)
    cluster.issue("mini", Role.HEAD).rename(default_folder())
    with pytest.raises(IdentityError, match="a head"):  # not "a certificate is missing"
        node_trust(None, insecure_lan=False, is_loopback=False)
    shutil.rmtree(default_folder())
    cluster.issue("mini", Role.NODE).rename(default_folder())
    assert node_trust(None, insecure_lan=False, is_loopback=True) is None
    kept = node_trust(None, insecure_lan=False, is_loopback=False)
    assert kept is not None
    assert kept.identity.peer.name == "mini"
    head = head_security(None, insecure_lan=False)
    assert head.trust is None
    with pytest.raises(IdentityError, match="a node") as caught:
        asyncio.run(head.for_address("192.0.2.1:50051"))
    assert "--role head" in caught.value.hint
    assert asyncio.run(head.for_address("127.0.0.1:50051")) is None
    listener = Listener()
    assert head_security(None, insecure_lan=True, watcher=listener).insecure_lan
    assert "anyone on the network path" in listener.notes[0]


def test_files_beside_a_signed_manifest_change_nothing(home, pipeline, tmp_path):
    """With a required signature only files that the manifest names are read; `verify --key` lists the others."""
    signer = make_signing_key(tmp_path / "key")
    folder = shutil.copytree(pipeline.folder.parent, tmp_path / "out") / pipeline.folder.name
    (folder / "shardhub.json.sig").write_bytes(signer.sign((folder / "shardhub.json").read_bytes()))
    verified = VerifySettings(cache_dir=tmp_path, key=signer.public)
    assert verify_files(str(folder), verified).ok
    # Whatever token comes first ends the answer; a list of nodes that is none.
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(tiny.VOCAB))}))
    (folder / "nodes.toml").write_text("nodes = 7")
    ask = ("generate", folder, "--raw", "-p", "abc", "--max-tokens", "8", "--require-signature", signer.public)
    said = shardhub(*ask, env=home)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()
    checked = verify_files(str(folder), verified)
    assert [check.what for check in checked.checks if check.state == "MISMATCH"] == ["generation_config.json"]
    (folder / "generation_config.json").unlink()
    (folder / "additional_chat_templates").mkdir()
    assert not verify_files(str(folder), verified).is_published


def test_a_signature_is_made_and_required(home, pipeline, tmp_path):
    """`split --sign-key` signs; `generate`, `serve` and `verify` refuse a wrong signature with exit code 3."""
    model, out = pipeline.folder.parent.parent / "model", tmp_path / "out"
    public = make_signing_key(tmp_path / "key").public
    other = make_signing_key(tmp_path / "other").public
    cut_options = ("--cuts", "3", "--name", "s", "--no-parity")
    split = shardhub("split", model, out, *cut_options, "--sign-key", tmp_path / "key", env=home)
    assert split.returncode == 0, split.stderr
    folder = out / "s-pipeline"
    ask = ("generate", folder, "--raw", "-p", "abc", "--max-tokens", "2")
    assert shardhub(*ask, "--require-signature", tmp_path / "key.pub", env=home).returncode == 0
    refused = shardhub("serve", folder, "--stages", "0", "--require-signature", other, env=home)
    assert refused.returncode == 3
    assert "another key" in refused.stderr
    assert verify_files(str(folder), VerifySettings(cache_dir=tmp_path, key=public)).ok
    assert not verify_files(str(folder), VerifySettings(cache_dir=tmp_path, key=other)).is_published
    places = Places(tmp_path)
    assert choose_shards(places, [str(folder)], "0", None, public)[0].folder == out / "s-shard-0"
    with pytest.raises(SignatureError):
        choose_shards(places, [str(folder)], "0", None, other)
    with pytest.raises(UsageError, match="needs a pipeline"):
        choose_shards(places, [str(out / "s-shard-0")], None, None, public)
    # Another shard under the right name: the manifest, which is signed, does not name it.
    (out / "s-shard-0").rename(out / "kept")
    (out / "s-shard-1").rename(out / "s-shard-0")
    with pytest.raises(DigestMismatch):
        choose_shards(places, [str(folder)], "0", None, public)
    # Without a key that is required, a manifest that was changed is warned of.
    manifest = folder / "shardhub.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"name":"s"', b'"name":"t"'))
    listener = Listener()
    check_pipeline(folder, None, listener)
    assert "WARNING" in listener.notes[0]
    secret = (tmp_path / "key").read_text().splitlines()[1]
    for one in (split, refused):
        assert secret not in one.stdout + one.stderr
