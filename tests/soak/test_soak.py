"""A minute of random traffic and random faults: every invariant holds."""

from __future__ import annotations

import asyncio

import pytest

from tests.soak.nemesis import Cluster, small_pipeline, soak


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
