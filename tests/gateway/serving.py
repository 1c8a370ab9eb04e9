"""Real gateways for tests: `shardhub gateway` in processes of their own, over real nodes."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from functools import partial
from pathlib import Path
from resource import RLIMIT_NOFILE, setrlimit
from typing import Any

from tests import forks

START_TIMEOUT_S = 120
END_TIMEOUT_S = 60


class GatewayProcess:
    """A `shardhub gateway` process.

    Args:
        pipeline: Its folder.
        addresses: Of nodes.
        options: More options.
        num_files: How many it may open, if not as many as this process.
    """

    def __init__(
        self,
        pipeline: Path,
        addresses: list[str],
        options: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        num_files: int | None = None,
    ) -> None:
        nodes = [part for address in addresses for part in ("--node", address)]
        self.log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed when the process has ended
        limits = {} if num_files is None else {"preexec_fn": partial(setrlimit, RLIMIT_NOFILE, (num_files, num_files))}
        self.process = forks.popen(
            ["gateway", str(pipeline), *nodes, "--port", "0", "--json", *options],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, **(env or {})},
            **limits,
        )
        timer = threading.Timer(START_TIMEOUT_S, self.process.kill)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        assert line, f"the gateway ended with {self.process.wait(END_TIMEOUT_S)}: {self.errors()}"
        self.ready: dict[str, Any] = json.loads(line)

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    def errors(self) -> str:
        """What the process has written on stderr so far."""
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def stop(self) -> int:
        """Send SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(END_TIMEOUT_S)
        self.process.stdout.close()
        self.log.close()
        return code
