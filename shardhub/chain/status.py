"""The life cycle of a stream: its statuses, and which may follow which.

WAITING --> RUNNING <--> PAUSED
   ^        |  ^  |
   |        v  |  v
   +-- OUTGROWN   INTERRUPTED --> RUNNING | OUTGROWN
from each of them --> FINISHED | FAILED | CANCELLED
"""

from __future__ import annotations

from enum import Enum


class Status(Enum):
    """Status of a stream.

    WAITING: it has no session, as the nodes have no room yet.
    RUNNING: its session takes steps, of the prompt and then of the answer.
    PAUSED: its reader is far behind; it takes no step until tokens have been read.
    INTERRUPTED: its last step failed with a node; recovery restores its session.
    OUTGROWN: its session is full; it moves to a larger one.
    FINISHED: its answer is complete, or its reader stopped it.
    FAILED: an error ended it.
    CANCELLED: its reader is gone.
    """

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    INTERRUPTED = "interrupted"
    OUTGROWN = "outgrown"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        """Whether the status is final."""
        return self in _ENDS

    def may_become(self, following: Status) -> bool:
        """Whether a stream may change to another status."""
        return not self.is_end and (following.is_end or following in _FOLLOWING[self])


_ENDS = (Status.FINISHED, Status.FAILED, Status.CANCELLED)
_FOLLOWING = {
    Status.WAITING: (Status.RUNNING,),
    Status.RUNNING: (Status.PAUSED, Status.INTERRUPTED, Status.OUTGROWN),
    Status.PAUSED: (Status.RUNNING,),
    Status.INTERRUPTED: (Status.RUNNING, Status.OUTGROWN),
    Status.OUTGROWN: (Status.RUNNING, Status.WAITING, Status.INTERRUPTED),
}
