"""Find the stage that delays a step which did not come round in time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from shardhub.chain.stage_link import StageLink
from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import ShardhubError, StepTimeout

# A node that does not report its load in this time is the slow one.
_ANSWER_S = 2.0


async def find_slow_stage(links: Sequence[StageLink], timeout_s: float, *, clock: Clock = SYSTEM_CLOCK) -> StepTimeout:
    """Ask the stages of a path for their load, and name the one that delays the others.

    Args:
        links: In stage order.
        timeout_s: Timeout of the step.
    """
    loads = await asyncio.gather(*(_load(link, clock) for link in links))
    late = [(link, load) for link, load in zip(links, loads, strict=True) if load is None or load.get("busy_s")]
    # First a stage that does not answer, then the one that has run its step the longest.
    late.sort(key=lambda pair: -(pair[1] or {}).get("busy_s", float("inf")))
    what = f"A step did not pass through all stages within {timeout_s:.0f} s."
    if not late:
        names = ", ".join(link.name for link in links)
        return StepTimeout(what, why=f"{names} are not computing it, so it was lost.", hint="See the nodes' logs.")
    link, load = late[0]
    layers = f"layers {link.facts.start} to {link.facts.stop - 1}"
    why = f"{link.name}, which serves {layers}, does not answer."
    if load is not None:
        busy_s, num_queued = load.get("busy_s", 0.0), load.get("queued_steps", 0.0)
        why = (
            f"{link.name}, which serves {layers}, has been computing one step for {busy_s:.1f} s; {num_queued:.0f} "
            "steps wait."
        )
    return StepTimeout(what, why=why, hint="Another program may be using that machine. See `shardhub status`.")


async def _load(link: StageLink, clock: Clock) -> Mapping[str, float] | None:
    """Load of a stage; None if it does not answer soon."""
    try:
        async with clock.timeout(_ANSWER_S):
            return await link.load()
    except (ShardhubError, TimeoutError):
        return None
