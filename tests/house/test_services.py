"""The systemd unit and the launchd property list in docs/services.md are well formed and run an existing command."""

from __future__ import annotations

import configparser
import plistlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from tests.nodes import shardhub

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "services.md").read_text()


def block(kind: str) -> str:
    """The document's only code block in a language."""
    (only,) = re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)
    return only


def commands() -> list[list[str]]:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read_string(block("ini"))
    return [shlex.split(unit["Service"]["ExecStart"]), plistlib.loads(block("xml").encode())["ProgramArguments"]]


def test_services_run_options_that_exist() -> None:
    """Every option of both files is listed by `serve --help`, and both run the same command."""
    unit, plist = commands()
    assert unit == plist
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
    plist = plistlib.loads(block("xml").encode())
    assert plist["KeepAlive"] == {"SuccessfulExit": False}
    assert plist["ExitTimeOut"] > 30


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
