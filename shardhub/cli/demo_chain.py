"""Two nodes of the demo model on this machine, for commands that need a chain for a demonstration."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shardhub.cli.terminal import note
from shardhub.demo.smollm2 import fetch_and_convert
from shardhub.errors import ChainError
from shardhub.naming import pipeline_name, shard_name
from shardhub.toolchain import check_compiler

MODEL = "SmolLM2-135M-Instruct"
NUM_STAGES = 2
# Loading takes a second or two; a cold machine compiles kernels first.
_START_TIMEOUT_S = 300
_SHARDHUB = [sys.executable, "-m", "shardhub"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoChain:
    """A pipeline and the nodes that serve it."""

    pipeline: Path
    addresses: tuple[str, ...]


@contextmanager
def demo_chain() -> Iterator[DemoChain]:
    """Split the demo model and serve its shards while the `with` block runs.

    Raises:
        ChainError: A process did not start.
    """
    check_compiler()
    note(f"{MODEL}: fetched once, then kept in the cache")
    model = fetch_and_convert(None, dtype="float32", progress=note)
    nodes: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory(prefix="shardhub-demo-") as folder:
        work = Path(folder)
        try:
            split = [*_SHARDHUB, "split", str(model), str(work), "--stages", str(NUM_STAGES), "--name", MODEL]
            done = subprocess.run([*split, "--no-parity", "--json"], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise ChainError("The demo model was not split.", why=done.stderr[-1000:].strip())
            nodes += [
                _serve(work / shard_name(MODEL, index), work / f"node-{index}.log") for index in range(NUM_STAGES)
            ]
            addresses = tuple(_address(node, work / f"node-{index}.log") for index, node in enumerate(nodes))
            yield DemoChain(pipeline=work / pipeline_name(MODEL), addresses=addresses)
        finally:
            for node in nodes:
                node.terminate()
            for node in nodes:
                node.wait()


def _serve(shard: Path, log: Path) -> subprocess.Popen[str]:
    with log.open("w") as errors:
        return subprocess.Popen(
            [*_SHARDHUB, "serve", str(shard), "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C reaches it through us only
        )


def _address(node: subprocess.Popen[str], log: Path) -> str:
    timer = threading.Timer(_START_TIMEOUT_S, node.kill)
    timer.start()
    try:
        assert node.stdout is not None
        line = node.stdout.readline()
    finally:
        timer.cancel()
    if not line:
        raise ChainError("A node of the demo did not start.", why=log.read_text()[-1000:].strip())
    return str(json.loads(line)["address"])
