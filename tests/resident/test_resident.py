"""Residents in real processes, over real TLS: they meet, hand on orders, keep them, and keep their nodes."""

from __future__ import annotations

import pytest

from tests import cut
from tests.residents import deployed, end_all, member, reached
from tests.security.cluster import Cluster
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resident")
    return cut.cut(cut.tiny_model(folder / "model"), folder / "out", (3,)).folder


def test_an_order_given_on_one_machine_is_followed_on_all(pipeline, tmp_path):
    """Three machines meet by one seed; an order given on one starts nodes on the others, whose addresses it shows."""
    cluster = Cluster(tmp_path / "cluster")
    studio = member(cluster, tmp_path, "studio").wait_ready()
    others = [member(cluster, tmp_path, name, seeds=(studio.address,)) for name in ("mini", "box")]
    machines = [studio, *(other.wait_ready() for other in others)]
    try:
        with machines[1].cluster() as seen:
            wait_until(lambda: reached(seen.own().members) == {"studio", "box"})
            counter, name = seen.next_order("pipe")
            assert (counter, name) == (1, "mini")
            seen.want(deployed(pipeline, ("studio", "box"), by=name))
            wait_until(lambda: [each.is_ready for each in seen.pipelines()] == [True])
            (pipe,) = seen.pipelines()
            assert [node.machine for node in pipe.nodes] == ["studio", "box"]
            assert len(set(pipe.addresses)) == 2
            assert [machine.name for machine in seen.machines()] == ["box", "mini", "studio"]
            assert all(machine.is_reachable for machine in seen.machines())
            for states in seen.watch():
                assert [each.name for each in states] == ["box", "mini", "studio"]
                break
    finally:
        end_all(machines)
