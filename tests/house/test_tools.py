"""The task script, git hooks and workflows run commands that exist."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TASKS = ("check", "format", "fast", "test", "all", "stubs", "docs")


def task(*arguments: str, python: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script with another program in the place of Python."""
    environment = {**os.environ, "PYTHON": python} if python else None
    command = [str(ROOT / "task"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def read(path: Path) -> dict[str, Any]:
    """A YAML file; the key `on` is read as a truth value, as in YAML 1.1."""
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def test_task_lists_what_it_does() -> None:
    """Without an argument the script prints its commands; an unknown command ends with 2."""
    assert re.findall(r"^\./task (\w+)", task().stdout, re.MULTILINE) == list(TASKS)
    unknown = task("publish")
    assert unknown.returncode == 2
    assert "./task check" in unknown.stderr


@pytest.mark.parametrize("name", TASKS)
def test_each_task_runs_python_modules(name: str, tmp_path: Path) -> None:
    """Each command runs at least one program, and succeeds if all of them do."""
    log, stand_in = tmp_path / "log", tmp_path / "python"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >>{log}\n')
    stand_in.chmod(0o755)
    done = task(name, python=str(stand_in))
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("-m ") for line in log.read_text().splitlines())


def test_task_fails_where_a_check_fails(tmp_path: Path) -> None:
    """The first check that fails ends the command with an error."""
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\n[ "$2" != mypy ]\n')
    stand_in.chmod(0o755)
    assert task("check", python=str(stand_in)).returncode == 1


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_exists(path: Path) -> None:
    """Each job has a time limit and steps, runs scripts that exist, and has write permission only where declared."""
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            for script in re.findall(r"(?:^|\s)(\./task|\.ci/run)\b", step.get("run", "")):
                assert os.access(ROOT / script, os.X_OK)
            for name in re.findall(r"\./task (\w+)", step.get("run", "")):
                assert name in TASKS


def test_hosted_machines_are_those_that_mlx_runs_on() -> None:
    """Workflows run on Linux on both processors, on the oldest supported Linux, and on macOS on Apple silicon."""
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    for system in ("ubuntu-24.04,", "ubuntu-24.04-arm", "ubuntu-22.04", "macos-14", "macos-15"):
        assert system in text


def test_release_needs_no_token() -> None:
    """Only the publishing job may request an identity token, and no secret is named."""
    path = ROOT / ".github" / "workflows" / "release.yml"
    jobs = read(path)["jobs"]
    assert "secrets." not in path.read_text()
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]
    assert jobs["publish"]["needs"] == "try"


def test_git_hooks_run_the_environments_tools() -> None:
    """Each hook runs a tool of .venv, so that its version is that of `./task check`."""
    (repo,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    assert {hook["id"] for hook in repo["hooks"]} == {"ruff", "format", "mypy", "stubs"}
    assert all(hook["entry"].startswith(".venv/bin/") for hook in repo["hooks"])
