"""A Mac that serves stays awake on mains power while the process lives, unless that is turned off."""

from __future__ import annotations

import os
import stat

import pytest

from shardhub.usecases.awake import awake
from tests.waiting import wait_until
from tests.watching import Listener


@pytest.fixture
def caffeinate(tmp_path, monkeypatch):
    """A stand-in for macOS's program that records its arguments and keeps running."""
    program = tmp_path / "bin" / "caffeinate"
    program.parent.mkdir()
    written, called = tmp_path / "written", tmp_path / "called"
    program.write_text(f'#!/bin/sh\necho "$@" > {written}\nmv {written} {called}\nexec sleep 600\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return called


def test_a_mac_is_held_awake_while_it_serves(caffeinate) -> None:
    """The program runs on mains power only, bound to this process, and ends with it."""
    with awake(allow_sleep=False, platform="darwin"):
        wait_until(caffeinate.exists)
    assert caffeinate.read_text().split() == ["-s", "-w", str(os.getpid())]


@pytest.mark.parametrize(("allow_sleep", "platform"), [(True, "darwin"), (False, "linux")])
def test_nobody_else_is_kept_awake(caffeinate, allow_sleep, platform) -> None:
    """The program does not run if the user allows sleep, or on another system."""
    with awake(allow_sleep=allow_sleep, platform=platform):
        pass
    assert not caffeinate.exists()


def test_a_mac_without_the_program_says_so(tmp_path, monkeypatch) -> None:
    """A Mac without the program serves, with a note."""
    monkeypatch.setenv("PATH", str(tmp_path))
    listener = Listener()
    with awake(allow_sleep=False, platform="darwin", watcher=listener):
        pass
    assert "may sleep" in listener.notes[0]
