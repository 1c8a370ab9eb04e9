"""The README's first command, as a new user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil

from tests import nodes
from tests.waiting import wait_until


def test_demo_says_what_the_unsplit_model_says(smollm2) -> None:
    """A real model, a local Hub and two nodes by repo id give exactly the tokens of mlx_lm; nothing is left behind."""
    result = nodes.shardhub("demo", "--json")
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["equal"] is True
    assert said["tokens"] == said["unsplit_tokens"]
    assert "Paris" in said["text"]
    assert (smollm2 / "config.json").is_file()


def is_pushing(process: psutil.Process) -> bool:
    """Whether a process is `split-and-push` and has begun its work."""
    try:
        return "split-and-push" in process.cmdline() and process.cpu_times().user > 0.2
    except psutil.Error:  # it has ended, or begins
        return False


def test_demo_that_is_ended_leaves_nothing_behind(smollm2, tmp_path) -> None:
    """SIGTERM during the push ends the started processes, removes the folder, and gives the signal's exit code."""
    assert (smollm2 / "config.json").is_file()
    demo = subprocess.Popen(
        [sys.executable, "-m", "shardhub", "demo"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        for line in demo.stderr:
            if line.startswith("3/5"):
                break
        started: list[psutil.Process] = []

        def pushes() -> bool:
            started[:] = psutil.Process(demo.pid).children(recursive=True)
            return any(map(is_pushing, started))

        wait_until(pushes, nodes.START_TIMEOUT_S)
        assert len(started) > 1, "its Hub runs"
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(nodes.END_TIMEOUT_S) == 143
        _, alive = psutil.wait_procs(started, timeout=nodes.END_TIMEOUT_S)
        assert not alive
        assert not list(tmp_path.glob("shardhub-demo-*"))
    finally:
        demo.kill()
        demo.wait()
        demo.stderr.close()
