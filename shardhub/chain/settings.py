"""Settings of a head's scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# Most answers are shorter; a longer one is moved occasionally, which takes about as long as one step.
FIRST_ANSWER = 2048


class Recovery(Enum):
    """How a sequence is recomputed on a node that does not hold it.

    EXACT: in the same chunks and steps as the first time, so that the numbers are the same.
    FAST: in the largest possible chunks.
    OFF: not recomputed; the request ends with the error.
    """

    EXACT = "exact"
    FAST = "fast"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """Settings of a scheduler.

    Attributes:
        max_rows: Most streams in a microbatch; None takes what the nodes allow.
        num_microbatches: Microbatches in flight; None takes one for each stage.
        prefill_chunk: Ids of every chunk; None sizes chunks by time and bytes.
        max_waiting: Most requests that wait for room.
        wait_s: Longest time a request waits for room.
        recovery: How a sequence goes on after the loss of a node.
        recover_wait_s: How long a stream without progress waits for other nodes, however many fail meanwhile.
        first_answer: Positions a session is opened for beyond its prompt. When they are full, the stream moves to a
            larger session, so that requests without a limit do not reserve memory they never use.
    """

    max_rows: int | None = None
    num_microbatches: int | None = None
    prefill_chunk: int | None = None
    max_waiting: int = 256
    wait_s: float = 120.0
    recovery: Recovery = Recovery.EXACT
    recover_wait_s: float = 60.0
    first_answer: int = FIRST_ANSWER
