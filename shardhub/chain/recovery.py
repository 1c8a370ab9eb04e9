"""Going on after a node is lost: which failures that is possible for, what is sent again, and what is told of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from shardhub.errors import (
    NodeLost,
    NodeUnreachable,
    PositionMismatch,
    SessionUnknown,
    ShardhubError,
    StaleEpoch,
    StepTimeout,
)

# Failures of a node or of the way to it. Whatever else goes wrong would go wrong again.
_OF_A_NODE = (NodeLost, NodeUnreachable, StepTimeout, SessionUnknown, PositionMismatch, StaleEpoch)


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
class Event:
    """Something that happened to the chain, for people.

    Attributes:
        kind: `lost`, `back`, `joined`, `refused`, `recovered`, `slept` or `gave-up`.
        text: In a sentence.
        at: Seconds since the epoch.
    """

    kind: str
    text: str
    at: float = field(default_factory=time.time)


def is_recoverable(error: BaseException) -> bool:
    """Whether another node, or the same one come back, could go on."""
    return isinstance(error, _OF_A_NODE)


def chunks_to_replay(shapes: Sequence[int], start: int, stop: int, *, mode: Recovery, largest: int) -> list[int]:
    """Lengths of the steps that bring a session from position `start` to `stop`.

    Args:
        shapes: Lengths of the steps that the session was first run in, from position 0.
        start, stop: Half-open range of positions.
        mode: EXACT repeats the shapes, FAST takes chunks of `largest`.
        largest: Most ids of a step.
    """
    if mode is Recovery.FAST:
        shapes = [largest] * (stop // largest + 1)
        at = start
    else:
        at = 0
    found: list[int] = []
    for length in shapes:
        end = min(at + length, stop)
        if end > max(at, start):
            found.append(end - max(at, start))
        at = end
    if at < stop:
        raise ValueError(f"shapes of {at} positions for {stop}")
    return found


def describe_error(error: ShardhubError) -> str:
    """An error in one line."""
    return f"{error.what} {error.why}".strip()
