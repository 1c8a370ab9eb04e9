"""Two nodes of the demo model on this machine, for commands that need a chain for a demonstration."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shardhub.demo.smollm2 import fetch_and_convert
from shardhub.naming import pipeline_name, shard_name
from shardhub.toolchain import check_compiler
from shardhub.usecases.processes import Processes, run_command
from shardhub.usecases.watcher import SILENT, Watcher

MODEL = "SmolLM2-135M-Instruct"
NUM_STAGES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoChain:
    """A pipeline and the nodes that serve it."""

    pipeline: Path
    addresses: tuple[str, ...]


@contextmanager
def demo_chain(watcher: Watcher = SILENT) -> Iterator[DemoChain]:
    """Split the demo model and serve its shards while the `with` block runs.

    Args:
        watcher: Told of the model, and of its download.

    Raises:
        ChainError: A process did not start.
    """
    check_compiler()
    watcher.note(f"{MODEL}: fetched once, then kept in the cache")
    model = fetch_and_convert(None, dtype="float32", progress=watcher.note)
    with tempfile.TemporaryDirectory(prefix="shardhub-demo-") as folder:
        work = Path(folder)
        run_command(
            *("split", str(model), str(work)),
            log=work / "split.log",
            failure="The demo model was not split.",
            stages=NUM_STAGES,
            name=MODEL,
            no_parity=True,
            json=True,
        )
        with Processes(work) as nodes:
            numbers = [
                nodes.start("serve", str(work / shard_name(MODEL, index)), port=0, json=True)
                for index in range(NUM_STAGES)
            ]
            addresses = tuple(str(nodes.ready(number)["address"]) for number in numbers)
            yield DemoChain(pipeline=work / pipeline_name(MODEL), addresses=addresses)
