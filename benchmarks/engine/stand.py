"""What a benchmark stands on: a model, cut and served by pinned nodes, heads over them, and mlx_lm alone beside it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine.delay import DelayProxies
from benchmarks.engine.processes import Placing, Talker, shown, start_alone, start_node
from benchmarks.engine.report import Report, say
from shardhub.chain.head import Head
from shardhub.chain.settings import SchedulerSettings
from shardhub.shard import Pipeline, read_pipeline
from tests.nodes import Node, stop_all


class Stand:
    """Starts and ends everything a benchmark runs. Use it with `async with`.

    Args:
        model: Folder of the whole model.
        placing: Where processes run.
        report: Told what they run on.
        context: Positions of a session.
    """

    def __init__(self, model: Path, placing: Placing, report: Report, *, context: int = 2048) -> None:
        self.model = model
        self.placing = placing
        self.context = context
        self._report = report
        self._folder = tempfile.TemporaryDirectory(prefix="shardhub-benchmark-")
        self._nodes: list[Node] = []
        self._heads: list[Head] = []
        self._talkers: list[Talker] = []
        self._proxies: list[DelayProxies] = []
        self._pipelines: dict[int, Pipeline] = {}

    async def __aenter__(self) -> Stand:
        return self

    async def __aexit__(self, *error: object) -> None:
        for head in self._heads:
            await head.stop()
        for talker in self._talkers:
            talker.stop()
        for proxies in self._proxies:
            proxies.stop()
        stop_all(self._nodes)
        self._folder.cleanup()

    def cut(self, num_stages: int) -> Pipeline:
        """The model in so many stages of about the same cost."""
        if num_stages not in self._pipelines:
            out = Path(self._folder.name) / str(num_stages)
            command = [sys.executable, "-m", "shardhub", "split", str(self.model), str(out), "--name", "m"]
            options = ["--stages", str(num_stages), "--no-parity"]
            done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"the model was not cut: {done.stderr}")
            self._pipelines[num_stages] = read_pipeline(out / "m-pipeline")
        return self._pipelines[num_stages]

    def serve(self, num_stages: int, *options: str, proxies: DelayProxies | None = None) -> list[Node]:
        """Nodes of the model in so many stages, a core each, counted round; behind proxies, if there are any."""
        pipeline = self.cut(num_stages)
        say(f"starting {num_stages} nodes")
        nodes = []
        for index in range(num_stages):
            advertise = ("--advertise", proxies.addresses[index]) if proxies else ()
            folder = pipeline.folder.parent / f"m-shard-{index}"
            all_options = ("--context", str(self.context), *advertise, *options)
            nodes.append(start_node(folder, self.placing, index, all_options))
        self._nodes += nodes
        for index, node in enumerate(nodes):
            node.wait_ready()
            if proxies:
                proxies.forward(index, node.address)
        return nodes

    async def head(
        self,
        nodes: Sequence[Node],
        scheduling: SchedulerSettings | None = None,
        *,
        proxies: DelayProxies | None = None,
    ) -> Head:
        """A head over nodes, in this process."""
        addresses = proxies.addresses if proxies else [node.address for node in nodes]
        pipeline = self.cut(len(nodes))
        head = await Head.start(pipeline, addresses, context=self.context, allow_local=False, scheduling=scheduling)
        self._heads.append(head)
        self._report.machines.setdefault(f"nodes {self._kind}", shown(dict(head.served[0].host)))
        return head

    async def drop(self, head: Head) -> None:
        """End a head before the others."""
        self._heads.remove(head)
        await head.stop()

    def alone(self) -> Talker:
        """mlx_lm on the whole model."""
        say("starting mlx_lm alone")
        talker = start_alone(self.model, self.placing)
        self._talkers.append(talker)
        self._report.machines.setdefault(f"mlx_lm {self._kind}", shown(talker.ready))
        return talker

    def proxies(self, num: int) -> DelayProxies:
        """TCP proxies that hold back what passes."""
        proxies = DelayProxies(num)
        self._proxies.append(proxies)
        return proxies

    @property
    def _kind(self) -> str:
        return "(one core, one BLAS thread each)" if self.placing.is_pinned else "(as installed)"
