"""A cluster of nodes in processes of their own, whose fetches from the Hub are counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from shardhub.hub.client import hub_api
from shardhub.localhub.server import RunningHub, running_hub
from shardhub.shard import read_shard
from tests import cut, nodes
from tests.hub import faulty
from tests.hub.published import OVER_LFS, Published, publish

pytestmark = OVER_LFS

WEIGHTS = ".safetensors"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """A Hub on loopback."""
    cache = tmp_path_factory.mktemp("hf")
    with pytest.MonkeyPatch.context() as patch, running_hub(cache / "hub") as running:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        yield running
        huggingface_hub.close_session()


@pytest.fixture(scope="module")
def net(hub: RunningHub) -> Iterator[faulty.Network]:
    """The network to the Hub, which counts bytes."""
    with faulty.network(hub.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def published(hub: RunningHub, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Three shards and their pipeline on the Hub."""
    work = tmp_path_factory.mktemp("work")
    pipeline = cut.tiny_pipeline(work / "made", (2, 4))
    return publish(hub_api(hub.endpoint, hub.token("ann")), "ann", pipeline, work)


@pytest.fixture(scope="module")
def env(hub: RunningHub, net: faulty.Network) -> dict[str, str]:
    """The environment of a Hub user."""
    return {"HF_ENDPOINT": net.endpoint, "HF_TOKEN": hub.token("ann")}


@pytest.fixture(scope="module")
def cluster(
    published: Published, env: dict[str, str], net: faulty.Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[nodes.Node]]:
    """A node for each stage, each with a cache of its own; the last one does not share."""
    started = []
    try:
        for index in range(3):
            own = {**env, "SHARDHUB_CACHE": str(tmp_path_factory.mktemp(f"cache{index}"))}
            options = ("--no-share",) if index == 2 else ()
            started.append(nodes.Node(published.shards[index], env=own, options=options))
        for node in started:
            node.wait_ready()
        assert net.fetched(WEIGHTS) == sum(weight_bytes(published, index) for index in range(3))
        yield started
    finally:
        nodes.stop_all(started)


def weight_bytes(published: Published, index: int) -> int:
    """Size of a stage's weight files."""
    return read_shard(cut.shard_folder(published.local, index)).stage.size_bytes


def test_a_fourth_node_fetches_no_weights_from_the_hub(
    cluster: list[nodes.Node], published: Published, env: dict[str, str], net: faulty.Network, tmp_path: Path
) -> None:
    """A replica in a cluster whose nodes it knows takes all its weight files from them, and serves."""
    net.forget()
    named = ",".join(node.address for node in cluster)
    replica = nodes.Node(
        published.shards[1], env={**env, "SHARDHUB_CACHE": str(tmp_path / "cache"), "SHARDHUB_NODES": named}
    )
    try:
        replica.wait_ready()
        log = replica.errors()
    finally:
        nodes.stop_all([replica])
    assert net.fetched(WEIGHTS) == 0
    assert f"fetching 2 of 2 weight files (0.40 MB) from {cluster[1].address}\n" in log
    assert "no weight files from" not in log
    seen = nodes.shardhub("status", published.pipeline, "--node", cluster[1].address, "--once", "--json", env=env)
    load = json.loads(seen.stdout)["nodes"][0]["load"]
    assert load["shared_bytes"] == weight_bytes(published, 1)
    assert load["shared_transfers"] == 0


def test_a_node_that_does_not_share_is_passed_over(
    cluster: list[nodes.Node], published: Published, env: dict[str, str], net: faulty.Network, tmp_path: Path
) -> None:
    """With --no-share a node gives nothing: a replica of its stage fetches it from the Hub, without a note."""
    net.forget()
    options = [part for node in cluster for part in ("--neighbour", node.address)]
    replica = nodes.Node(
        published.shards[2], env={**env, "SHARDHUB_CACHE": str(tmp_path / "cache")}, options=tuple(options)
    )
    try:
        replica.wait_ready()
        log = replica.errors()
    finally:
        nodes.stop_all([replica])
    assert net.fetched(WEIGHTS) == weight_bytes(published, 2)
    assert "fetching" not in log
    assert "no weight files" not in log
