"""`shardhub hub` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from huggingface_hub import HfApi

from shardhub.localhub.server import running_hub
from tests.nodes import shardhub

_RUN = [sys.executable, "-c", "from shardhub.cli.commands.hub import hub_app; hub_app()"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment}
    return subprocess.run([*_RUN, *arguments], capture_output=True, text=True, check=False, env=environment)


def test_init_serve_token_and_gc(tmp_path: Path) -> None:
    place = ["--dir", str(tmp_path / "hub")]
    made = run("init", *place, "--user", "ann")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert token.startswith("hf_")
    assert token not in made.stderr
    again = run("init", *place)
    assert again.returncode == 2
    assert "already" in again.stderr
    command = [*_RUN, "serve", *place, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            endpoint = json.loads(server.stdout.readline())["endpoint"]
            assert HfApi(endpoint=endpoint, token=token).whoami()["name"] == "ann"
            second = run("serve", *place, "--port", "0")
            assert second.returncode == 2
            assert "in use" in second.stderr
            bob = run("token", "bob", *place, "--role", "read").stdout.strip()
            assert HfApi(endpoint=endpoint, token=bob).whoami()["auth"]["accessToken"]["role"] == "read"
        finally:
            server.send_signal(signal.SIGINT)
    assert server.returncode == 0
    listed = json.loads(run("token", *place, "--json").stdout)
    assert [(row["user"], row["role"]) for row in listed] == [("ann", "write"), ("bob", "read")]
    assert token not in json.dumps(listed)
    assert run("token", *place, "--revoke", listed[1]["id"]).returncode == 0
    assert len(json.loads(run("token", *place, "--json").stdout)) == 1
    assert json.loads(run("gc", *place, "--json").stdout) == {"commits": 0, "blobs": 0, "freed_bytes": 0}


def test_a_folder_without_a_hub_is_named(tmp_path: Path) -> None:
    for command in ("serve", "token", "ls", "gc"):
        done = run(command, "--dir", str(tmp_path))
        assert done.returncode == 2
        assert "shardhub hub init" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_ls_lists_repos_of_a_running_hub(tmp_path: Path) -> None:
    with running_hub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token("ann"))
        for name, tag in (("m", "x"), ("m-shard-0", "shardhub-shard"), ("m-pipeline", "shardhub-pipeline")):
            api.create_repo(f"ann/{name}", private=name == "m")
            card = f"---\ntags:\n- {tag}\n---\n".encode()
            api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=f"ann/{name}")
        api.create_repo("ann/data", repo_type="dataset")
        place = ["--dir", str(tmp_path / "hub")]
        rows = json.loads(run("ls", *place, "--json").stdout)
        assert [(row["id"], row["kind"], row["private"]) for row in rows] == [
            ("ann/m-pipeline", "pipeline", False),
            ("ann/m-shard-0", "shard", False),
            ("ann/m", "model", True),
            ("ann/data", "dataset", True),
        ]
        assert rows[2]["commit"] == api.model_info("ann/m").sha
        assert rows[2]["num_files"] == 2
        assert rows[2]["size_bytes"] == sum(file.size for file in api.list_repo_tree("ann/m"))
        shown = run("ls", *place).stdout.splitlines()
        assert [line.split()[:3] for line in shown][1:3] == [
            ["ann/m-shard-0", "shard", "public"],
            ["ann/m", "model", "private"],
        ]


def test_mirror_brings_a_repo_over(tmp_path: Path) -> None:
    with running_hub(tmp_path / "source") as source, running_hub(tmp_path / "target") as target:
        api = HfApi(endpoint=source.endpoint, token=source.token("org"))
        api.create_repo("org/m", private=False)
        api.upload_file(path_or_fileobj=b"w" * 1000, path_in_repo="w.bin", repo_id="org/m")
        token = target.token("ann")
        environment = {"HF_ENDPOINT": target.endpoint, "HF_TOKEN": token, "SHARDHUB_CACHE": str(tmp_path / "cache")}
        done = run("mirror", f"{source.endpoint}/org/m", "--json", **environment)
        record = json.loads(done.stdout)
        mirrored = HfApi(endpoint=target.endpoint, token=token)
        assert (record["repo"], record["commit"]) == ("ann/m", mirrored.model_info("ann/m").sha)
        assert record["source_commit"] == api.model_info("org/m").sha
        assert run("mirror", f"{source.endpoint}/org/m", **environment).stdout == f"ann/m@{record['commit']}\n"


def test_a_hub_is_served_over_tls_and_trusted_with_the_printed_line(tmp_path: Path) -> None:
    """`certs init`, `hub init`, `hub serve --tls`; the line of `certs bundle` is all that the stock client needs."""
    home = {"XDG_CONFIG_HOME": str(tmp_path / "it's"), "SHARDHUB_TLS": ""}
    assert shardhub("certs", "init", "--name", "box", "--address", "127.0.0.1", env=home).returncode == 0
    place = ["--dir", str(tmp_path / "hub")]
    token = shardhub("hub", "init", *place, "--user", "ann", env=home).stdout.strip()
    tls = str(tmp_path / "it's" / "shardhub" / "tls")
    command = [*_RUN, "serve", *place, "--port", "0", "--tls", tls]
    environment = {**os.environ, **home}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None
            endpoint = server.stdout.readline().strip()
            line = shardhub("certs", "bundle", env=home).stdout.strip()
            program = f"from huggingface_hub import HfApi; print(HfApi('{endpoint}').whoami('{token}')['name'])"
            script = f'{line}; exec {sys.executable} -c "{program}"'
            asked = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=False, env={})
            assert asked.stdout == "ann\n", asked.stderr
        finally:
            server.send_signal(signal.SIGINT)
        assert server.stderr is not None
        said = server.stderr.read()
    assert server.returncode == 0
    assert endpoint.startswith("https://127.0.0.1:")
    assert "TLS for 127.0.0.1, ::1, box, box.local, localhost" in said
    assert "needs a token" not in said
