"""Requests over real nodes, for tests that inject faults meanwhile."""

from __future__ import annotations

from contextlib import asynccontextmanager

from shardhub.chain.assignment import assign_stages
from shardhub.chain.chain import Chain
from shardhub.chain.links import NodeDialer
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.settings import SchedulerSettings
from shardhub.wire.options import Liveness

# A silent peer is noticed within two seconds, and so is one whose machine stood still for one.
QUICK = Liveness(ping_s=1.0, timeout_s=1.0)
# For tests in which nobody may be given up whose machine was only held up.
PATIENT = Liveness(ping_s=1.0, timeout_s=6.0)


@asynccontextmanager
async def scheduler_of(pipeline, addresses, *, liveness=QUICK, dialer=None, **settings):
    """A scheduler that notices lost nodes quickly.

    Args:
        liveness: How soon, over gRPC.
        dialer: How they are reached; None is over gRPC.
    """
    dialer = dialer or NodeDialer(liveness=liveness)
    described = [(address, await dialer.describe(address)) for address in addresses]
    assigned = assign_stages(pipeline.manifest, described)
    chain = await Chain.start([dialer.link(node.address, node.description) for node in assigned])
    scheduler = Scheduler(chain, SchedulerSettings(**{"recover_wait_s": 30.0, "prefill_chunk": 16} | settings))
    try:
        yield scheduler
    finally:
        await scheduler.stop()
        await chain.stop()


async def tokens_of(scheduler, submitted) -> list[int]:
    """Tokens of a request, returned once every node has freed its session."""
    stream = scheduler.submit(submitted)
    tokens = [token.id async for token in stream]
    await stream.ended.wait()
    return tokens
