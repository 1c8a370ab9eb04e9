"""A cluster of nodes in processes of their own, whose fetches from the Hub are counted."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

import shardhub
from shardhub.hub.cache import Cache
from shardhub.hub.client import hub_api
from shardhub.hub.known_nodes import KnownNodes
from shardhub.localhub.server import RunningHub, running_hub
from shardhub.shard import read_shard
from shardhub.usecases.watcher import Silent
from tests import cut, nodes, tiny
from tests.hub import faulty
from tests.hub.published import OVER_LFS, Published, publish
from tests.waiting import wait_until

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
    model = cut.tiny_model(work / "model")
    tiny.save_tokenizer(model)
    pipeline = cut.cut(model, work / "made", (2, 4))
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
            started.append(nodes.Node(published.shards[index], env=own, options=(*options, "--metrics", "0")))
            started[-1].cache = own["SHARDHUB_CACHE"]
        for node in started:
            node.wait_ready()
        assert net.fetched(WEIGHTS) == sum(weight_bytes(published, index) for index in range(3))
        yield started
    finally:
        nodes.stop_all(started)


def weight_bytes(published: Published, index: int) -> int:
    """Size of a stage's weight files."""
    return read_shard(cut.shard_folder(published.local, index)).stage.size_bytes


def metrics(node: nodes.Node) -> dict[str, float]:
    """A node's metrics of weight files."""
    with urllib.request.urlopen(f"http://{node.ready['metrics']}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def test_a_fourth_node_fetches_no_weights_from_the_hub(
    cluster: list[nodes.Node], published: Published, env: dict[str, str], net: faulty.Network, tmp_path: Path
) -> None:
    """A replica in a cluster whose nodes it knows takes all its weight files from them, and serves."""
    net.forget()
    named = ",".join(node.address for node in cluster)
    replica = nodes.Node(
        published.shards[1],
        env={**env, "SHARDHUB_CACHE": str(tmp_path / "cache"), "SHARDHUB_NODES": named},
        options=("--metrics", "0"),
    )
    try:
        replica.wait_ready()
        log = replica.errors()
        fetched = metrics(replica)
    finally:
        nodes.stop_all([replica])
    assert net.fetched(WEIGHTS) == 0
    assert f"fetching 2 of 2 weight files (0.40 MB) from {cluster[1].address}\n" in log
    assert "no weight files from" not in log
    seen = nodes.shardhub("status", published.pipeline, "--node", cluster[1].address, "--once", "--json", env=env)
    load = json.loads(seen.stdout)["nodes"][0]["load"]
    assert load["shared_bytes"] == weight_bytes(published, 1)
    assert load["shared_transfers"] == 0
    size_bytes = weight_bytes(published, 1)
    for place, num_bytes in (("neighbour", size_bytes), ("hub", 0), ("source", 0), ("cache", 0)):
        assert fetched[f'shardhub_fetched_bytes_total{{place="{place}"}}'] == num_bytes
    assert metrics(cluster[1])["shardhub_shared_bytes_total"] == size_bytes
    assert metrics(cluster[1])['shardhub_fetched_bytes_total{place="hub"}'] == size_bytes


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
    assert "weight files (" not in log  # as in "fetching 3 of 3 weight files (0.53 MB) from"
    assert "no weight files" not in log


def test_pull_takes_weights_from_nodes(
    cluster: list[nodes.Node], published: Published, env: dict[str, str], net: faulty.Network, tmp_path: Path
) -> None:
    """`shardhub pull` asks the nodes of SHARDHUB_NODES, and those of --neighbour, before the Hub."""
    net.forget()
    pulled = nodes.shardhub(
        "pull",
        *published.shards[:2],
        "--neighbour",
        cluster[1].address,
        env={**env, "SHARDHUB_CACHE": str(tmp_path / "cache"), "SHARDHUB_NODES": cluster[0].address},
    )
    assert pulled.returncode == 0, pulled.stderr
    assert net.fetched(WEIGHTS) == 0


class Agreeing(Silent):
    """Answers yes."""

    def ask(self, question: str) -> bool:
        return True


def test_heads_introduce_nodes_and_take_weights_from_them(
    cluster: list[nodes.Node],
    published: Published,
    env: dict[str, str],
    net: faulty.Network,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node keeps the addresses that a head tells it; a head takes a stage for itself from a node that it knows."""
    net.forget()
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    cache = Cache(tmp_path / "cache")
    KnownNodes(cache).add([cluster[1].address])
    settings = shardhub.HeadSettings(
        pipeline=published.pipeline, nodes=(cluster[0].address, cluster[2].address), cache_dir=cache.root
    )
    with shardhub.open_head(settings, Agreeing()) as head:
        assert head.answer([1, 2, 3], shardhub.Sampling(max_tokens=2)).tokens
        wait_until(lambda: KnownNodes(Cache(cluster[0].cache)).read() == [cluster[2].address])
    assert KnownNodes(Cache(cluster[2].cache)).read() == [cluster[0].address]
    assert net.fetched(WEIGHTS) == 0
