"""`shardhub hub` as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from huggingface_hub import HfApi

_RUN = [sys.executable, "-c", "from shardhub.cli.commands.hub import hub_app; hub_app()"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_RUN, *arguments], capture_output=True, text=True, check=False)


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
    for command in ("serve", "token", "gc"):
        done = run(command, "--dir", str(tmp_path))
        assert done.returncode == 2
        assert "shardhub hub init" in done.stderr
    assert list(tmp_path.iterdir()) == []
