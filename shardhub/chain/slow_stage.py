"""Which stage of a path keeps a step waiting that did not come round in time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from shardhub.chain.stage_link import StageLink
from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import ShardhubError, StepTimeout

# A node that does not say in this time what it is busy with is the one.
_ANSWER_S = 2.0


async def find_slow_stage(links: Sequence[StageLink], timeout_s: float, *, clock: Clock = SYSTEM_CLOCK) -> StepTimeout:
    """Ask the stages of a path what they are busy with, and name the one that keeps the others waiting.

    Args:
        links: In stage order.
        timeout_s: What the step was given.
    """
    loads = await asyncio.gather(*(_load(link, clock) for link in links))
    late = [(link, load) for link, load in zip(links, loads, strict=True) if load is None or load.get("busy_s")]
    # Who does not answer, before who has been at one step the longest.
    late.sort(key=lambda pair: -(pair[1] or {}).get("busy_s", float("inf")))
    what = f"A step did not come round within {timeout_s:.0f} s."
    if not late:
        names = ", ".join(link.name for link in links)
        return StepTimeout(what, why=f"None of {names} is busy with it: it was lost.", hint="Look at their logs.")
    link, load = late[0]
    layers = f"layers {link.facts.start} to {link.facts.stop - 1}"
    why = f"{link.name}, which serves {layers}, does not answer."
    if load is not None:
        busy_s, num_queued = load.get("busy_s", 0.0), load.get("queued_steps", 0.0)
        why = f"{link.name}, which serves {layers}, has been at one step for {busy_s:.1f} s; {num_queued:.0f} wait."
    return StepTimeout(what, why=why, hint="Is another program on that machine? See `shardhub status`.")


async def _load(link: StageLink, clock: Clock) -> Mapping[str, float] | None:
    """What a stage is busy with; nothing where it does not say so soon."""
    try:
        async with clock.timeout(_ANSWER_S):
            return await link.load()
    except (ShardhubError, TimeoutError):
        return None
