"""Addresses of other nodes, kept on disk: a bounded list, whatever is written there."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardhub.hub.cache import Cache
from shardhub.hub.known_nodes import KnownNodes
from shardhub.limits import MAX_NODES_KEPT


@pytest.fixture
def known(tmp_path: Path) -> KnownNodes:
    """The addresses of an empty cache."""
    return KnownNodes(Cache(tmp_path))


def test_newer_addresses_come_first_and_the_oldest_are_forgotten(known: KnownNodes) -> None:
    """At most 64 are kept, each once, whatever is told; what is no address is left out."""
    assert known.read() == []
    known.add(["10.77.0.1:1", "http://10.77.0.1", "10.77.0.2:2", "10.77.0.1:1", 7, "[::1]:3"])
    assert known.read() == ["10.77.0.1:1", "10.77.0.2:2", "[::1]:3"]
    known.add(["10.77.0.9:9"])
    assert known.read() == ["10.77.0.9:9", "10.77.0.1:1", "10.77.0.2:2", "[::1]:3"]
    known.add([f"10.78.0.{number}:1" for number in range(200)])
    assert known.read() == [f"10.78.0.{number}:1" for number in range(MAX_NODES_KEPT)]


@pytest.mark.parametrize("data", [b"", b"{}", b"[", b"\xff", b'["x", null, {}]', b"[" * 100_000, b'"' + b"a" * 10**6])
def test_what_somebody_else_wrote_there_counts_as_nothing(known: KnownNodes, data: bytes, tmp_path: Path) -> None:
    """A file that is damaged or was made by hand stops no node."""
    (tmp_path / "nodes.json").write_bytes(data)
    assert known.read() == []
    known.add(["10.77.0.1:1"])
    assert known.read() == ["10.77.0.1:1"]
