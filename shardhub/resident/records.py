"""The record that a node's process keeps for its resident: a file that says how far it is, and of which process it is.

The process writes it itself, so that a resident that was killed and started again finds the nodes that live on, and
learns of them what it would have learnt of its own. A lock that the process holds keeps a second one from serving the
same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import psutil
from pydantic import AfterValidator, Field

from shardhub.errors import Conflict, ShardhubError, by_name
from shardhub.locks import lock_open
from shardhub.manifest import Document, decode, encode
from shardhub.regular_files import read_file
from shardhub.whole_files import write_whole

# The environment variable with which a resident tells a node's process where its record is.
RECORD_VARIABLE = "SHARDHUB_NODE_RECORD"
_MAX_BYTES = 64 << 10
MAX_TEXT = 2000
# A process that ends takes a moment to let go of its lock.
_LOCK_WAIT_S, _LOCK_POLL_S = 5.0, 0.05
# Two readings of a process's beginning differ by rounding.
_SAME_BEGINNING_S = 1.0


def _printable(text: str) -> str:
    """A text without line ends and signs that steer a terminal: it may come from another machine."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else " " for sign in text)


Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_printable)]


class NodeState(StrEnum):
    """How far a node's process is.

    STARTING: it fetches and loads its stage.
    READY: it answers heads.
    FAILED: it has ended with an error.
    """

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"


class Failure(Document):
    """The error that a process ended with; see `ShardhubError`."""

    error: Text
    what: Text
    why: Text = ""
    hint: Text = ""

    @classmethod
    def of(cls, error: ShardhubError) -> Failure:
        """An error as a document."""
        texts = (type(error).__name__, error.what, error.why, error.hint)
        name, what, why, hint = (text[:MAX_TEXT] for text in texts)
        return cls(error=name, what=what, why=why, hint=hint)

    def as_error(self) -> ShardhubError:
        """The error again."""
        return by_name(self.error, self.what, why=self.why, hint=self.hint)


class NodeRecord(Document):
    """How far a node's process is.

    Attributes:
        pid, began_at: Number and beginning of the process, in seconds since the epoch: together they are those of one
            process only.
        doing: What it does, for people; empty if nothing in particular.
        done_bytes, total_bytes: Of what it fetches or reads; 0 if it does not.
        address: Where it answers, once it is ready.
        failure: What it ended with.
    """

    kind: Literal["shardhub-node-record"] = "shardhub-node-record"
    format_version: Literal[1] = 1
    pid: Annotated[int, Field(ge=1)]
    began_at: float
    state: NodeState = NodeState.STARTING
    doing: Text = ""
    done_bytes: Annotated[int, Field(ge=0)] = 0
    total_bytes: Annotated[int, Field(ge=0)] = 0
    address: Text | None = None
    failure: Failure | None = None

    @property
    def process(self) -> psutil.Process | None:
        """Its process; None if that has ended."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.began_at) < _SAME_BEGINNING_S
            return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def process_bytes(pid: int) -> int:
    """Memory that a process holds; 0 if it has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def own_record() -> NodeRecord:
    """A record of this process, which has just begun."""
    return NodeRecord(pid=os.getpid(), began_at=psutil.Process().create_time())


def read_record(path: Path) -> NodeRecord | None:
    """Read a record; None if the file is missing or cannot be read."""
    try:
        return decode(NodeRecord, read_file(path, _MAX_BYTES), where=str(path))
    except (OSError, ShardhubError):
        return None


def write_record(path: Path, record: NodeRecord) -> None:
    """Write a record; a disk that is full only makes it old."""
    with suppress(OSError):
        write_whole(path, encode(record), mode=0o600)


@contextmanager
def held(
    path: Path,
    *,
    what: str = "This machine serves that stage already.",
    hint: str = "End it: `shardhub down PIPELINE`.",
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Hold the lock of a record while the block runs.

    Args:
        what, hint: Of the error.

    Raises:
        Conflict: Another process holds it.
    """
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        left_s = _LOCK_WAIT_S
        while not lock_open(descriptor):
            if left_s <= 0:
                raise Conflict(what, why=f"Another process holds {path.with_suffix('.lock')}.", hint=hint)
            sleep(_LOCK_POLL_S)
            left_s -= _LOCK_POLL_S
        yield
    finally:
        os.close(descriptor)
