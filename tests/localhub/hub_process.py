"""A Hub in a process of its own, which can be killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardhub.localhub.hub import LocalHub


@contextmanager
def hub_process(folder: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Hub in a process of its own."""
    command = [sys.executable, "-m", "shardhub.localhub", str(folder), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            if process.poll() is None:
                process.terminate()


def make_token(folder: Path, user: str = "ann") -> str:
    with LocalHub(folder) as hub:
        return hub.token(user)
