"""Processes of nodes: started by this resident, or by one before it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

import psutil

from shardhub.resident.hub_access import HubAccess
from shardhub.resident.records import RECORD_VARIABLE, NodeRecord

# Of the log of a node's earlier processes, what is kept when another one starts.
_KEPT_LOG_BYTES = 1 << 20


class RunningNode(Protocol):
    """A node's process."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""

    def end(self) -> None:
        """Ask it to finish its sessions and end; asked twice, it ends at once."""

    def kill(self) -> None:
        """End it without asking."""


class Launcher(Protocol):
    """Starts and finds processes of nodes."""

    def start(self, words: Sequence[str], *, record: Path, log: Path, hub: HubAccess | None = None) -> RunningNode:
        """Start a process that keeps a record at a path, and logs into a file.

        Args:
            words: The command, without the program.
            hub: The Hub that it fetches from; None for that of this machine's environment.
        """

    def take_over(self, record: NodeRecord) -> RunningNode | None:
        """The living process of a record that another resident's process keeps; None if it has ended."""


class SystemLauncher:
    """Starts `shardhub` in processes of this system, which go on without this one."""

    def start(self, words: Sequence[str], *, record: Path, log: Path, hub: HubAccess | None = None) -> RunningNode:
        """Start a process; see `Launcher.start`."""
        shorten(log)
        own = os.environ if hub is None else hub.environment(os.environ)
        environment = {**own, RECORD_VARIABLE: str(record)}
        with log.open("ab") as output:
            return _Child(start_outliving(words, output, environment))

    def take_over(self, record: NodeRecord) -> RunningNode | None:
        """Find a process by its record; see `Launcher.take_over`."""
        process = record.process
        return None if process is None else _Found(process)


class OutlivingProcess(subprocess.Popen[bytes]):
    """A process that goes on when this one ends, of which `Popen` would warn."""

    def __del__(self) -> None:
        """Leave it alone."""


def start_outliving(words: Sequence[str], output: IO[bytes], environment: Mapping[str, str]) -> OutlivingProcess:
    """Start `shardhub` in a session of its own.

    Args:
        words: The command, without the program.
        output: Takes what it prints and logs.
    """
    return OutlivingProcess(
        [sys.executable, "-m", "shardhub", *words],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment,
        start_new_session=True,
    )


class _Child:
    """A process that this one started, and has to wait for."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def is_running(self) -> bool:
        return self._child.poll() is None

    def end(self) -> None:
        self._child.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._child.kill()


class _Found:
    """A process that another one started."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def end(self) -> None:
        with suppress(psutil.Error):
            self._process.terminate()

    def kill(self) -> None:
        with suppress(psutil.Error):
            self._process.kill()


def shorten(log: Path) -> None:
    """Keep only the end of a log that has grown large; what appends to it goes on."""
    with suppress(OSError):
        if log.stat().st_size > 2 * _KEPT_LOG_BYTES:
            with log.open("rb") as file:
                file.seek(-_KEPT_LOG_BYTES, os.SEEK_END)
                kept = file.read().partition(b"\n")[2]
            log.write_bytes(kept)
