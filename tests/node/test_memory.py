"""A node's process holds the tensors of its own stage, and none of the other stages'."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import psutil
import pytest

from tests import cut, nodes, tiny

# Over what a process that serves next to nothing takes: buffers, and pages that are not full.
_SHARE = 0.15
WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a tiny llama (t) and of one with 200 MB of random weights in bfloat16 (m)."""
    folder = tmp_path_factory.mktemp("memory")
    config = {**tiny.config("llama"), **WIDE}
    wide = tiny.save(tiny.build(config, dtype=mx.bfloat16), config, folder / "wide")
    cut.cut(wide, folder, (4,))
    cut.cut(cut.tiny_model(folder / "tiny"), folder, (3,), name="t")
    return folder


def test_stage_takes_the_memory_of_its_own_tensors(made: Path) -> None:
    """A node's process takes about as much memory as its own stage's tensors, beyond that of an almost empty node."""
    started = nodes.start(*((made / name,) for name in ("t-shard-1", "m-shard-0", "m-shard-1")))
    try:
        idle, *taken = [psutil.Process(node.process.pid).memory_info().rss for node in started]
        for node, rss_bytes in zip(started[1:], taken, strict=True):
            own_bytes = node.ready["weight_bytes"]
            assert own_bytes > 90_000_000
            assert rss_bytes - idle < own_bytes * (1 + _SHARE)
    finally:
        nodes.stop_all(started)
