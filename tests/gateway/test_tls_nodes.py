"""A gateway over nodes with TLS: it answers, and its page can show the nodes."""

from __future__ import annotations

import json
import urllib.request

from shardhub.security.certificates import Role
from tests import cut, nodes
from tests.gateway.serving import GatewayProcess
from tests.security.cluster import Cluster


def test_the_chain_is_shown_over_tls(tmp_path, tiny_tokenizer) -> None:
    """Every node is alive in /shardhub/state, which uses the head's certificate."""
    pipeline = cut.cut(cut.tiny_model(tmp_path / "model"), tmp_path / "out", (3,))
    tiny_tokenizer(pipeline.folder)
    cluster = Cluster(tmp_path / "cluster")
    node_tls, head_tls = cluster.issue("mini", Role.NODE), cluster.issue("laptop", Role.HEAD)
    folders = [(cut.shard_folder(pipeline, index),) for index in range(2)]
    served = nodes.start(*folders, options=("--tls", str(node_tls)))
    try:
        gateway = GatewayProcess(pipeline.folder, [node.address for node in served], ("--tls", str(head_tls)))
        try:
            with urllib.request.urlopen(f"{gateway.url}/shardhub/state", timeout=60) as answer:
                state = json.load(answer)
        finally:
            gateway.stop()
    finally:
        nodes.stop_all(served)
    assert [(node["at"], node["alive"]) for node in state["nodes"]] == [(node.address, True) for node in served]
