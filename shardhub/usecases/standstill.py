"""When to stop waiting for the nodes of a pipeline: they make no progress, or end again and again."""

from __future__ import annotations

from collections.abc import Sequence

from shardhub.errors import RouteError
from shardhub.resident.nodes import Phase
from shardhub.usecases.cluster_view import ServedNode
from shardhub.usecases.deployed import failure_of, progress_of, raise_failure

# Longest time without any progress of the nodes that are missing: the layers of a machine that is gone are placed on
# others after 15 s.
PATIENCE_S = 120.0
# While a node says what it does but has no bytes to count: 100 GB are loaded in 15 minutes at 110 MB/s, as from a disk
# in the network.
BUSY_PATIENCE_S = 900.0
# The pauses before six starts are 31 s together: what passes by itself, such as an earlier node that still holds memory
# while its sessions end, has passed by then.
MAX_STARTS = 6

_Key = tuple[str, int, int, int]


class Standstill:
    """What the nodes of a pipeline have done since somebody began to wait for them.

    Progress is what a node did not do before: another activity, or more bytes of one. A node that is started again and
    does the same once more makes none.
    """

    def __init__(self) -> None:
        self._bytes: dict[tuple[_Key, str], int] = {}
        self._first_starts: dict[_Key, int] = {}
        self._since: float | None = None

    def check(self, name: str, nodes: Sequence[ServedNode], now: float) -> None:
        """Take note of what the nodes do, those that are ready too.

        Args:
            name: The pipeline's, for messages.
            nodes: All its nodes.
            now: Seconds of a clock that is never set back.

        Raises:
            RouteError: They have made no progress for too long.
            ShardhubError: One of them cannot serve its layers, or has ended `MAX_STARTS` times.
        """
        has_progressed = [self._has_progressed(node) for node in nodes]
        if any(has_progressed) or self._since is None:
            self._since = now
        missing = [node for node in nodes if not node.is_ready]
        for node in missing:
            raise_failure(node)
            if self._num_starts(node) >= MAX_STARTS and _has_ended(node):
                raise failure_of(node)
        patience_s = BUSY_PATIENCE_S if any(map(_is_busy, missing)) else PATIENCE_S
        if now - self._since <= patience_s:
            return
        for node in missing:
            if _has_ended(node) or self._num_starts(node) > 1:
                raise failure_of(node)
        raise RouteError(
            f"{name} is not served completely.",
            why=f"Nothing has changed for {patience_s:.0f} s: {waiting_text(missing) or 'no machine has the order'}.",
            hint="See what is up: shardhub ps",
        )

    def _has_progressed(self, node: ServedNode) -> bool:
        progress = progress_of(node)
        activity = (_key(node), progress.doing)
        before = self._bytes.get(activity)
        self._bytes[activity] = max(progress.done_bytes, before or 0)
        return before is None or progress.done_bytes > before

    def _num_starts(self, node: ServedNode) -> int:
        """How often a node was started since it was first seen; its start then counts, too."""
        num_starts = 0 if node.report is None else node.report.num_starts
        first = min(num_starts, self._first_starts.get(_key(node), max(0, num_starts - 1)))
        self._first_starts[_key(node)] = first
        return num_starts - first


def waiting_text(missing: Sequence[ServedNode]) -> str:
    """What the nodes that are missing do, for people."""
    texts = []
    for node in missing:
        progress = progress_of(node)
        share = f" {progress.done_bytes / progress.total_bytes:.0%}" if progress.total_bytes else ""
        texts.append(f"{node.machine} (layers {node.start} to {node.stop - 1}): {progress.doing}{share}")
    return ", ".join(texts)


def _key(node: ServedNode) -> _Key:
    return (node.machine, node.replica, node.start, node.stop)


def _has_ended(node: ServedNode) -> bool:
    """Whether its process has ended, and is started again after a pause."""
    return node.is_reachable and node.report is not None and node.report.phase is Phase.WAITING


def _is_busy(node: ServedNode) -> bool:
    """Whether its process says what it does, without bytes."""
    report = node.report
    return (
        node.is_reachable
        and report is not None
        and report.phase is Phase.STARTING
        and report.doing != ""
        and not report.total_bytes
    )
