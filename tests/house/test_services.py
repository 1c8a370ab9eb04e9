"""The systemd unit and the launchd property list in docs/services.md are well formed and run an existing command."""

from __future__ import annotations

import configparser
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.nodes import shardhub

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "services.md").read_text()


def block(kind: str) -> str:
    """The document's only code block in a language."""
    (only,) = re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)
    return only


def plist() -> dict[str, Any]:
    return plistlib.loads(block("xml").encode())


def commands() -> list[list[str]]:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read_string(block("ini"))
    return [shlex.split(unit["Service"]["ExecStart"]), plist()["ProgramArguments"][4:]]


def test_services_run_options_that_exist() -> None:
    """Every option of both files is listed by `serve --help`, and both run the same command."""
    unit, daemon = commands()
    assert unit == daemon
    known = shardhub("serve", "--help", env={"COLUMNS": "200"}).stdout
    assert all(option in known for option in unit if option.startswith("--"))


def test_stuck_nodes_are_started_again() -> None:
    """Both supervisors restart a node that ended with 70, and wait longer than its drain before they kill it."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read_string(block("ini"))
    service = unit["Service"]
    assert service["Restart"] == "on-failure"
    assert "70" not in service["RestartPreventExitStatus"].split()
    assert int(service["TimeoutStopSec"]) > 30
    assert plist()["KeepAlive"] == {"SuccessfulExit": False}
    assert plist()["ExitTimeOut"] > 30


def supervised(*command: str) -> subprocess.Popen[str]:
    """Run a command as the LaunchDaemon runs the node."""
    return subprocess.Popen([*plist()["ProgramArguments"][:4], *command], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("code", "passed_on"), [(0, 0), (1, 1), (2, 0), (3, 0), (4, 0), (5, 5), (6, 6), (70, 70)])
def test_launchd_does_not_repeat_what_would_fail_again(code: int, passed_on: int) -> None:
    """launchd restarts a node after every exit code but 0: it sees 0 for the codes that a restart cannot mend."""
    with supervised("sh", "-c", f"exit {code}") as process:
        assert process.wait(60) == passed_on


def test_launchd_drains_the_node() -> None:
    """The node gets the signal that launchd sends to the shell, and its exit code after the drain is passed on."""
    node = "import signal; signal.signal(15, lambda *_: exit(9)); print('ready', flush=True); signal.pause()"
    with supervised(sys.executable, "-c", node) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(60) == 9


def test_systemd_takes_the_unit(tmp_path) -> None:
    """Where systemd is installed, its own check accepts the unit, apart from the command that is not installed here."""
    program = shutil.which("systemd-analyze")
    if program is None:
        return
    path = tmp_path / "shardhub-node.service"
    path.write_text(block("ini"))
    done = subprocess.run([program, "verify", str(path)], capture_output=True, text=True, check=False)
    faults = [line for line in done.stderr.splitlines() if "shardhub-node" in line and "not executable" not in line]
    assert not faults, faults
