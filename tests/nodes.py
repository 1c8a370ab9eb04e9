"""Real nodes for tests: `shardhub serve` in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, Self

from tests import forks

START_TIMEOUT_S = 120
END_TIMEOUT_S = 60


class Announced:
    """A `shardhub` command that announces its address with a line of JSON, in a process of its own.

    Args:
        command: `serve`, `gateway` or `resident run`.
        arguments: Its arguments and options; a port among them replaces a free one.
        env: Further environment variables.
        limits: Further arguments of `forks.popen`.

    Attributes:
        ready: What it announced.
    """

    def __init__(self, command: str, *arguments: object, env: dict[str, str] | None = None, **limits: Any) -> None:
        self.log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed when the process has ended
        self.process = forks.popen(
            [*command.split(), "--port", "0", "--json", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, **(env or {})},
            **limits,
        )
        self.ready: dict[str, Any] = {}

    def wait_ready(self) -> Self:
        """Wait for the line that states the listening address."""
        timer = threading.Timer(START_TIMEOUT_S, self.process.kill)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        assert line, f"the process ended with {self.process.wait(END_TIMEOUT_S)}: {self.errors()}"
        self.ready = json.loads(line)
        return self

    def errors(self) -> str:
        """What the process has written on stderr so far."""
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def stop(self) -> int:
        """Send SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        try:
            return self.process.wait(END_TIMEOUT_S)
        finally:
            self.process.stdout.close()
            self.log.close() if self.process.poll() is not None else None


class Node(Announced):
    """A `shardhub serve` process.

    Args:
        folders: Shard folders.
        options: More options.
    """

    def __init__(self, *folders: Path, options: tuple[str, ...] = (), env: dict[str, str] | None = None) -> None:
        super().__init__("serve", *folders, *options, env=env)

    @property
    def address(self) -> str:
        return str(self.ready["address"])

    def freeze(self) -> None:
        """Send SIGSTOP; returns once every thread has stopped. SIGCONT resumes it."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()
        self.wait()


def start(*groups: tuple[Path, ...], options: tuple[str, ...] = ()) -> list[Node]:
    """Start nodes side by side, one for each group of shard folders, and wait until all are ready."""
    nodes = [Node(*group, options=options) for group in groups]
    try:
        return [node.wait_ready() for node in nodes]
    except BaseException:
        stop_all(nodes)
        raise


def stop_all(nodes: list[Node]) -> None:
    """End nodes that still run."""
    for node in nodes:
        if node.process.poll() is None:
            node.process.kill()
    for node in nodes:
        node.process.wait()
        node.process.stdout.close()
        node.log.close()


def shardhub(
    *arguments: object, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return forks.run([*map(str, arguments)], stdin=stdin, timeout=300, env={**os.environ, **(env or {})})
