"""A chain of two stages whose every link goes through a proxy that holds back what passes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.engine.delay import DelayProxies
from benchmarks.engine.processes import Placing
from benchmarks.engine.report import Report
from benchmarks.engine.stand import Stand
from shardhub.chain.head import Head

NUM_STAGES = 2
DELAY_S = 0.02


async def start(stand: Stand) -> tuple[Head, DelayProxies]:
    """The head of such a chain; nothing is held back yet."""
    proxies = stand.proxies(NUM_STAGES)
    nodes = stand.serve(NUM_STAGES, proxies=proxies)
    return await stand.head(nodes, proxies=proxies), proxies


def stand_of(model: Path, placing: Placing, report: Report) -> Stand:
    return Stand(model, placing, report, context=1024)
