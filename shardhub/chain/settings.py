"""How a head is to run its requests."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# Most answers are shorter; a longer one is moved now and then, which takes about as long as one step.
FIRST_ANSWER = 2048


class Recovery(Enum):
    """How a sequence is computed again on a node that does not hold it.

    EXACT: in the same chunks and steps as the first time, so that the numbers are the same.
    FAST: in chunks as large as they go.
    OFF: not at all: the request ends with the error.
    """

    EXACT = "exact"
    FAST = "fast"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """How a scheduler is to run.

    Attributes:
        max_rows: Most streams in a microbatch; None takes what the nodes allow.
        num_microbatches: Microbatches on their way; None takes one for each stage.
        prefill_chunk: Ids of every chunk; None sizes them by time and bytes.
        max_waiting: Requests that may wait for room.
        wait_s: How long one may wait.
        recovery: How a sequence goes on after a node was lost.
        recover_wait_s: How long one waits for other nodes without any progress, however many fail meanwhile.
        first_answer: Positions a session is opened for beyond its prompt; it is moved to a larger one when they are
            full, so that requests that name no limit do not keep memory from each other that they never use.
    """

    max_rows: int | None = None
    num_microbatches: int | None = None
    prefill_chunk: int | None = None
    max_waiting: int = 256
    wait_s: float = 120.0
    recovery: Recovery = Recovery.EXACT
    recover_wait_s: float = 60.0
    first_answer: int = FIRST_ANSWER
