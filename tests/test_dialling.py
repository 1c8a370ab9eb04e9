"""Advice for an address that nothing answers at."""

from __future__ import annotations

import errno

import pytest

from shardhub.dialling import NO_NODE_HINT, unreachable_hint

# The texts of gRPC, asyncio with one address, and asyncio with two.
NO_ROUTE = (
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:192.168.1.7:50051: connect: No route to host (65)",
    f"[Errno {errno.EHOSTUNREACH}] Connect call failed ('192.168.1.7', 50051)",
    f"Multiple exceptions: [Errno 61] Connect call failed ('::1', 50051, 0, 0), [Errno {errno.EHOSTUNREACH}] Connect "
    "call failed ('192.168.1.7', 50051)",
)


@pytest.mark.parametrize("fault", NO_ROUTE)
def test_mac_without_a_route_is_told_of_the_local_network(fault: str) -> None:
    """Where a Mac has no route, the advice says where to allow the local network."""
    advice = unreachable_hint(fault, system="Darwin")
    assert advice.startswith(NO_NODE_HINT)
    assert "Privacy & Security, Local Network" in advice


@pytest.mark.parametrize(
    ("fault", "system"), [(NO_ROUTE[0], "Linux"), ("connect: Connection refused (61)", "Darwin"), ("", "Darwin")]
)
def test_other_faults_keep_their_advice(fault: str, system: str) -> None:
    """Only that fault, and only on a Mac, is explained by the permission."""
    assert unreachable_hint(fault, system=system) == NO_NODE_HINT
    assert unreachable_hint(fault, hint="Check it.", system=system) == "Check it."
