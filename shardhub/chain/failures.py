"""Failures of a chain: which of them another node can remedy, and how they are described."""

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

# Failures of a node or of the path to it. Any other error would occur again.
_OF_A_NODE = (NodeLost, NodeUnreachable, StepTimeout, SessionUnknown, PositionMismatch, StaleEpoch)


def is_recoverable(error: BaseException) -> bool:
    """Whether the work can go on with another node, or with the same one after it returns."""
    return isinstance(error, _OF_A_NODE)


def describe_error(error: ShardhubError) -> str:
    """Describe an error in one line."""
    return f"{error.what} {error.why}".strip()
