"""A stream's life: one status at a time, and which may follow which.

WAITING --> RUNNING <--> PAUSED
   ^        |  ^  |
   |        v  |  v
   +-- OUTGROWN   INTERRUPTED --> RUNNING | OUTGROWN
from each of them --> FINISHED | FAILED | CANCELLED
"""

from __future__ import annotations

from enum import Enum


class Status(Enum):
    """Where a stream is in its life.

    WAITING: no session runs it: the nodes have no room yet.
    RUNNING: its session takes steps: of the prompt, then of the answer.
    PAUSED: its reader is far behind: it takes no step until tokens were read.
    INTERRUPTED: a node's failure broke its last step: recovery brings its session back.
    OUTGROWN: its session is full: it is moved to a larger one.
    FINISHED: its answer is complete, or its reader has what it wants.
    FAILED: an error ended it.
    CANCELLED: nobody reads it any more.
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
        """Whether nothing follows."""
        return self in _ENDS

    def may_become(self, following: Status) -> bool:
        """Whether a stream may go on to another status."""
        return not self.is_end and (following.is_end or following in _FOLLOWING[self])


_ENDS = (Status.FINISHED, Status.FAILED, Status.CANCELLED)
_FOLLOWING = {
    Status.WAITING: (Status.RUNNING,),
    Status.RUNNING: (Status.PAUSED, Status.INTERRUPTED, Status.OUTGROWN),
    Status.PAUSED: (Status.RUNNING,),
    Status.INTERRUPTED: (Status.RUNNING, Status.OUTGROWN),
    Status.OUTGROWN: (Status.RUNNING, Status.WAITING, Status.INTERRUPTED),
}
