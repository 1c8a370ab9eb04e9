"""Random traffic and random faults, one test for a minute and one for half a minute: every invariant holds."""

from __future__ import annotations

import asyncio

import pytest

from tests import cut
from tests.gateway.conftest import save_model
from tests.soak.nemesis import Cluster, small_pipeline, soak
from tests.soak.tenants import tenants_soak

pytestmark = pytest.mark.soak


@pytest.mark.timeout(900)
def test_streams_survive_random_faults(tmp_path) -> None:
    """Kills, freezes and stutters while requests come and go: no wrong token, no hang, nothing left behind."""
    cluster = Cluster(small_pipeline(tmp_path))
    try:
        report = asyncio.run(soak(cluster, seed=7, seconds=60))
    finally:
        cluster.stop()
    assert not report.broken, report.line()
    assert report.outcomes["done"] >= 10, report.line()
    assert sum(report.faults.values()) >= 3, report.line()


@pytest.mark.timeout(900)
def test_tenants_whose_clients_leave_leave_nothing(tmp_path) -> None:
    """Clients of three keys leave at random while nodes come and go: no request hangs, and nothing is left."""
    cluster = Cluster(cut.cut(save_model(tmp_path / "model"), tmp_path / "out", (3,)))
    try:
        report = asyncio.run(tenants_soak(cluster, seed=7, seconds=30))
    finally:
        cluster.stop()
    assert not report.broken, report.line()
    assert report.outcomes["200"] >= 10, report.line()
    assert report.outcomes["left"] >= 5, report.line()
