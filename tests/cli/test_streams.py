"""Standard streams that are closed, full, or lack a character: every command still ends with its own exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import cut, nodes

FULL = Path("/dev/full")
TEXT = "caf\u00e9 \U0001f600 \ud800"
PRINTS = """
import sys
from shardhub.cli.run import run
from shardhub.cli.terminal import write_answer
from shardhub.cli.streams import prepare_streams
prepare_streams()
def command():
    write_answer(TEXT)
    sys.stdout.write(chr(10) + str(sys.stdin.read()))
    print("log", TEXT, file=sys.stderr)
run(command)
""".replace("TEXT", ascii(TEXT))


def shell(redirections: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command that prints a text through every function, with its streams redirected by a shell."""
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -c "$1" {redirections}', sys.executable, PRINTS],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=60,
        check=False,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_any_text_can_be_shown(encoding: str) -> None:
    """Characters that a stream's encoding lacks are escaped as in JSON, on stdout and stderr."""
    done = shell("", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "\\ud800" in done.stdout
    assert "\\ud800" in done.stderr
    if encoding == "ascii":
        assert json.loads(f'"{done.stdout.strip()}"') == TEXT


@pytest.mark.parametrize("redirections", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-", "2>&- >&-"])
def test_closed_streams_stop_nothing(redirections: str) -> None:
    """A command whose streams are closed runs to its end."""
    assert shell(redirections).returncode == 0


def test_full_log_stops_nothing() -> None:
    """Log lines that cannot be written are dropped; the answer is complete."""
    done = shell(f"2>{FULL}")
    assert done.returncode == 0
    assert done.stdout.startswith("café")


def test_full_output_is_reported() -> None:
    """An answer that cannot be written is a full disk, not a traceback."""
    done = shell(f">{FULL}")
    assert done.returncode == 6
    assert "The output could not be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_reader_that_leaves_causes_no_error() -> None:
    """A reader that closes the pipe after one line causes no error message."""
    done = shell("| true; exit 0")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", ["--help", "--version", "doctor --json"])
def test_every_command_tells_a_full_output(arguments: str) -> None:
    """Help and version, too, end with the exit code of a full disk."""
    command = f'exec "{sys.executable}" -m shardhub {arguments} >{FULL}'
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr


def test_node_serves_where_its_log_is_full(tmp_path) -> None:
    """A node whose stderr is a full device becomes ready, and drains with exit code 0."""
    pipeline = cut.cut(cut.tiny_model(tmp_path / "model"), tmp_path / "out", (3,))
    with FULL.open("w") as full:
        node = nodes.Node.__new__(nodes.Node)
        node.log = full
        node.process = subprocess.Popen(
            [sys.executable, "-m", "shardhub", "serve", str(cut.shard_folder(pipeline, 0)), "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
        )
        node.wait_ready()
        assert node.stop() == 0
