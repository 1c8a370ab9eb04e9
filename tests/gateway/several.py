"""Three tiny models with a node each, for gateways that serve several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shardhub.shard import Pipeline
from tests import cut, nodes
from tests.gateway.conftest import save_model

# Their names, and the seeds of their weights: they differ in nothing else.
MODELS = {"ant": 1, "bee": 2, "cat": 3}
NODE_OPTIONS = ("--context", "512", "--max-sessions", "8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Three:
    """Pipelines of three models, and a node for each with all of its stages."""

    pipelines: dict[str, Pipeline]
    nodes: dict[str, nodes.Node]

    @property
    def folders(self) -> list[Path]:
        return [pipeline.folder for pipeline in self.pipelines.values()]

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes.values()]


@contextmanager
def three_models(folder: Path) -> Iterator[Three]:
    """Cut three models, and serve them as long as the block runs."""
    pipelines = {
        name: cut.cut(save_model(folder / name, seed=seed), folder / f"{name}-out", (3,), name=name)
        for name, seed in MODELS.items()
    }
    groups = [tuple(cut.shard_folder(pipeline, index) for index in range(2)) for pipeline in pipelines.values()]
    started = nodes.start(*groups, options=NODE_OPTIONS)
    try:
        yield Three(pipelines=pipelines, nodes=dict(zip(pipelines, started, strict=True)))
    finally:
        nodes.stop_all(started)
