"""Conversion of errors to gRPC statuses and back."""

from __future__ import annotations

import json
from typing import Any

import grpc

from shardhub.dialling import unreachable_hint
from shardhub.errors import ChainError, NodeLost, NodeUnreachable, ShardhubError, StepTimeout, by_name, outcome

# Trailing metadata with an error's class and texts: ASCII, below the 8 KiB that gRPC passes on.
ERROR_KEY = "shardhub-error"
_MAX_TEXT = 1000
# gRPC core's texts about connections, the most specific first. Source: grpc 1.85, as seen in faults.
_NETWORK_WORDS = (
    ("connection refused", "the connection was refused"),
    ("connection reset", "the connection was reset"),
    ("no route to host", "that machine cannot be reached (a firewall may block it)"),
    ("network is unreachable", "the network cannot be reached"),
    ("name or service not known", "the name cannot be resolved"),
    ("domain name not found", "the name cannot be resolved"),
    ("dns resolution failed", "the name cannot be resolved"),
    ("address lookup failed", "the name cannot be resolved"),
    ("errors resolving", "the name cannot be resolved"),
    ("keepalive", "it stopped answering"),
    ("ping timeout", "it stopped answering"),
    ("timed out", "it did not answer in time"),
    ("timeout", "it did not answer in time"),
    ("handshake", "its TLS settings do not match this side's"),
    ("ssl_error", "its TLS settings do not match this side's"),
    ("socket closed", "the connection was closed"),
    ("stream removed", "the connection was closed"),
    ("broken pipe", "the connection was closed"),
    ("cancelling all calls", "it shut down"),
    ("goaway", "it is shutting down"),
)
_ORDERLY = ("cancelling all calls", "goaway")


def to_status(error: ShardhubError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Convert one of our errors to a status code, details and trailing metadata."""
    code: grpc.StatusCode = getattr(grpc.StatusCode, outcome(error).grpc)
    texts = {"error": type(error).__name__, "what": error.what, "why": error.why, "hint": error.hint}
    value = json.dumps({key: text[:_MAX_TEXT] for key, text in texts.items()})
    return code, error.what[:_MAX_TEXT], ((ERROR_KEY, value),)


def from_rpc(error: grpc.RpcError, *, peer: str, doing: str) -> ShardhubError:
    """Convert a failed call's status to our error.

    Args:
        error: The exception gRPC raised.
        peer: Address of the node.
        doing: What was attempted, for the message, such as "describe it".
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
            why=f"Tried to {doing}: {network_words(details)}.",
            hint=unreachable_hint(details),
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return StepTimeout(
            f"{peer} did not answer in time.", why=f"Tried to {doing}.", hint="The node may be overloaded."
        )
    if code == grpc.StatusCode.CANCELLED:
        return NodeLost(f"The call to {peer} was cancelled.", why=f"Tried to {doing}.")
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return ChainError(
            f"{peer} is not a shardhub node, or it runs another version.",
            why=f"It does not support this call: {doing}.",
            hint="Upgrade shardhub on both machines.",
        )
    return NodeLost(f"The call to {peer} failed.", why=f"Tried to {doing}: {network_words(details)} ({code}).")


def network_words(details: str | None) -> str:
    """Rephrase gRPC's text about a connection for people; an unknown text is returned as it is."""
    text = details or ""
    lower = text.lower()
    return next((words for phrase, words in _NETWORK_WORDS if phrase in lower), text or "no details are known")


def is_orderly(details: str | None) -> bool:
    """Whether the other side ended a connection because it was asked to end, by gRPC's text about it."""
    return any(phrase in (details or "").lower() for phrase in _ORDERLY)


def _trailing(error: grpc.RpcError) -> list[tuple[str, str]]:
    pairs: Any = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    return [(key, value) for key, value in pairs or () if isinstance(value, str)]
