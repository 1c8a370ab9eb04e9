"""Processes of a benchmark: pinned to a core, one BLAS thread each, or as they come."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardhub.blas import Blas
from tests.nodes import Node

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_SHOWN = ("shardhub", "mlx", "mlx_lm", "python", "os", "cpu", "blas", "backend")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """Where processes run and what they compute with.

    Attributes:
        blas: The BLAS of shardhub's nodes.
        alone_blas: That of mlx_lm alone.
        is_pinned: Each on one core with one BLAS thread; else as they come.
    """

    blas: Blas
    alone_blas: Blas
    is_pinned: bool = True

    @property
    def env(self) -> dict[str, str]:
        return dict.fromkeys(_THREADS, "1") if self.is_pinned else {}

    @contextlib.contextmanager
    def core(self, index: int) -> Iterator[None]:
        """What is started meanwhile runs on core `index`, counted round."""
        if not self.is_pinned or not hasattr(os, "sched_setaffinity"):
            yield
            return
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {sorted(allowed)[index % len(allowed)]})
        try:
            yield
        finally:
            os.sched_setaffinity(0, allowed)


class Talker:
    """A Python process that answers a line of JSON with another.

    Attributes:
        ready: Its first line.
    """

    def __init__(self, module: str, *arguments: object, env: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.ready: dict[str, Any] = self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("a process of the benchmark ended early")
        message: dict[str, Any] = json.loads(line)
        return message


def start_alone(model: Path, placing: Placing) -> Talker:
    """mlx_lm on the whole model, on the first core."""
    with placing.core(0):
        return Talker("benchmarks.engine.alone", model, placing.alone_blas.value, env=placing.env)


def start_server(model: Path, placing: Placing) -> tuple[subprocess.Popen[bytes], str]:
    """mlx_lm.server on the first core, and where its API will be."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.engine.server", placing.alone_blas.value]
    options = ["--model", str(model), "--port", str(port), "--log-level", "ERROR", "--prompt-cache-size", "0"]
    with placing.core(0):
        server = subprocess.Popen(
            [*command, *options],
            env={**os.environ, **placing.env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return server, f"http://127.0.0.1:{port}/v1"


def start_node(folder: Path, placing: Placing, core: int, options: tuple[str, ...] = ()) -> Node:
    """A node of one shard; not ready yet."""
    with placing.core(core):
        return Node(folder, options=("--blas", placing.blas.value, *options), env=placing.env)


def shown(facts: dict[str, str]) -> dict[str, str]:
    """The facts that figures depend on."""
    return {key: facts[key] for key in _SHOWN if facts.get(key)}
