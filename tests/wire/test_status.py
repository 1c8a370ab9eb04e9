"""Errors as gRPC statuses and back."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from shardhub.errors import OUTCOMES, ChainError, NodeLost, NodeUnreachable, StepTimeout
from shardhub.wire.status import from_rpc, network_words, to_status


def rpc_error(code, details="", trailing=()):
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


@pytest.mark.parametrize("kind", list(OUTCOMES))
def test_every_error_survives_the_way_through_a_status(kind) -> None:
    """Class and texts come back, umlauts and newlines included; the peer's address is put in front."""
    error = kind("what happened: ü\nline two", why="3 != 4", hint="do this")
    code, details, trailing = to_status(error)
    assert code.name == OUTCOMES[kind].grpc
    assert all(value.isascii() for _, value in trailing)
    rebuilt = from_rpc(rpc_error(code, details, trailing), peer="node:1", doing="x")
    assert type(rebuilt) is kind
    assert rebuilt.what == "node:1: what happened: ü\nline two"
    assert (rebuilt.why, rebuilt.hint) == (error.why, error.hint)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, NodeUnreachable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, StepTimeout),
        (grpc.StatusCode.CANCELLED, NodeLost),
        (grpc.StatusCode.UNIMPLEMENTED, ChainError),
        (grpc.StatusCode.INTERNAL, NodeLost),
    ],
)
def test_statuses_that_are_not_ours_become_ours(code, kind) -> None:
    """Each of gRPC's own failures becomes an error of ours with the peer and what was tried."""
    rebuilt = from_rpc(rpc_error(code, "details"), peer="node:1", doing="describe it")
    assert type(rebuilt) is kind
    assert "node:1" in rebuilt.what


@pytest.mark.parametrize("value", ["", "{", "[]", '{"error": 3}'])
def test_broken_metadata_still_gives_an_error(value) -> None:
    """Invalid metadata from a peer still gives an error."""
    error = rpc_error(grpc.StatusCode.UNAVAILABLE, "x", (("shardhub-error", value),))
    assert isinstance(from_rpc(error, peer="node:1", doing="x"), ChainError)


@pytest.mark.parametrize(
    "details",
    [
        "DNS resolution failed for studio.local:50051: UNAVAILABLE",
        "errors resolving studio:50051: [field:hostname lookup error:address lookup failed for studio:50051: "
        "Could not contact DNS servers]",
    ],
)
def test_names_without_an_address_are_reported(details) -> None:
    """What gRPC's resolver says about an unknown name becomes plain words, whichever resolver is used."""
    assert network_words(details) == "the name cannot be resolved"
