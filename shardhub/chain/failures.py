"""Failures of a chain: which another node can mend, and what people are told of them."""

from __future__ import annotations

from shardhub.errors import (
    NodeLost,
    NodeUnreachable,
    PositionMismatch,
    SessionUnknown,
    ShardhubError,
    StaleEpoch,
    StepTimeout,
)

# Failures of a node or of the path to it. Whatever else goes wrong would go wrong again.
_OF_A_NODE = (NodeLost, NodeUnreachable, StepTimeout, SessionUnknown, PositionMismatch, StaleEpoch)


def is_recoverable(error: BaseException) -> bool:
    """Whether another node, or the same one come back, could go on."""
    return isinstance(error, _OF_A_NODE)


def describe_error(error: ShardhubError) -> str:
    """An error in one line."""
    return f"{error.what} {error.why}".strip()
