"""Errors to gRPC statuses and back."""

from __future__ import annotations

import json
from typing import Any

import grpc

from shardhub.errors import ChainError, NodeLost, NodeUnreachable, ShardhubError, StepTimeout, by_name, outcome

# Trailing metadata that carries an error's class and texts; ASCII, below the 8 KiB that gRPC passes on.
ERROR_KEY = "shardhub-error"
_MAX_TEXT = 1000


def to_status(error: ShardhubError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Status code, details and trailing metadata for an error raised on purpose."""
    code: grpc.StatusCode = getattr(grpc.StatusCode, outcome(error).grpc)
    texts = {"error": type(error).__name__, "what": error.what, "why": error.why, "hint": error.hint}
    value = json.dumps({key: text[:_MAX_TEXT] for key, text in texts.items()})
    return code, error.what[:_MAX_TEXT], ((ERROR_KEY, value),)


def from_rpc(error: grpc.RpcError, *, peer: str, doing: str) -> ShardhubError:
    """The error behind a failed call.

    Args:
        error: What gRPC raised.
        peer: Address of the node.
        doing: What was tried, for the message: "describe it".
    """
    for key, value in _trailing(error):
        if key == ERROR_KEY:
            try:
                texts = json.loads(value)
                return by_name(texts["error"], f"{peer}: {texts['what']}", why=texts["why"], hint=texts["hint"])
            except (ValueError, KeyError, TypeError):
                break
    code = error.code() if hasattr(error, "code") else None
    details = (error.details() or "")[:300] if hasattr(error, "details") else ""
    if code == grpc.StatusCode.UNAVAILABLE:
        return NodeUnreachable(
            f"No node answers at {peer}.",
            why=f"gRPC could not {doing}: {details}.",
            hint="Is `shardhub serve` running there, and is the address right?",
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return StepTimeout(f"{peer} did not answer in time.", why=f"Tried to {doing}.", hint="Is the node overloaded?")
    if code == grpc.StatusCode.CANCELLED:
        return NodeLost(f"The call to {peer} was cut off.", why=f"Tried to {doing}.")
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return ChainError(
            f"{peer} is no shardhub node, or one of another age.",
            why=f"It does not know how to {doing}.",
            hint="Upgrade shardhub on both machines.",
        )
    return NodeLost(f"The call to {peer} failed.", why=f"Tried to {doing}: {code} {details}.")


def _trailing(error: grpc.RpcError) -> list[tuple[str, str]]:
    pairs: Any = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    return [(key, value) for key, value in pairs or () if isinstance(value, str)]
