"""The watchdog: a node whose compute thread is stuck reports it and ends; a node whose machine slept notices it."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable

from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.engine.engine import Engine
from shardhub.naps import Naps

log = logging.getLogger(__name__)

# A step that takes longer than this is stuck: the slowest chunk seen on a CPU took 30 s.
STUCK_S = 600.0
EXIT_CODE = 70


async def watch(
    engine: Engine,
    report: Callable[[bool], Awaitable[None]],
    *,
    stuck_s: float = STUCK_S,
    interval_s: float = 1.0,
    end: Callable[[int], None] = os._exit,
    clock: Clock = SYSTEM_CLOCK,
    naps: Naps | None = None,
    on_slept: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Watch an engine for as long as the task runs.

    Args:
        report: Called with whether the node is ready; it is not ready after half of `stuck_s`.
        stuck_s: Seconds of one step after which the process exits with 70, as nothing else frees a thread inside MLX.
        interval_s: Seconds between checks.
        end: Ends the process.
        clock: The node's clock.
        naps: Detects sleep of the machine; by default with the clock.
        on_slept: Called with the seconds the machine slept.
    """
    is_ready, naps = True, naps or Naps(clock.with_sleep, awake=clock.now)
    while True:
        await clock.sleep(interval_s)
        if slept := naps.slept_s():
            log.warning("this machine was asleep for %.0f s: heads have probably continued without this node", slept)
            on_slept(slept)
        busy_s = engine.busy_s
        if (busy_s < stuck_s / 2) != is_ready:
            is_ready = not is_ready
            await report(is_ready)
        if busy_s >= stuck_s:
            log.error("one step has run for %.0f s: the compute thread is stuck, so this node exits", busy_s)
            end(EXIT_CODE)
            return
