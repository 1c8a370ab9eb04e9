"""Addresses of nodes as users write them."""

from __future__ import annotations

import socket

import pytest

from shardhub.address import Address
from shardhub.errors import UsageError
from shardhub.usecases.addresses import (
    each_address,
    has_changing,
    neighbour_addresses,
    node_addresses,
    read_nodes_file,
)


def test_nodes_are_named_with_or_without_a_port() -> None:
    """An address without a port gets the port that `serve` listens on by default."""
    assert node_addresses(["studio", "::1", "10.77.0.1:7"], None) == ["studio:50051", "[::1]:50051", "10.77.0.1:7"]


@pytest.mark.parametrize("text", ["", "studio:0", "http://studio:1", "[::1"])
def test_malformed_address_is_reported_with_its_option(text: str) -> None:
    """An address that no node can have is refused, and the option is named."""
    with pytest.raises(UsageError, match=r"`nodes`: .* is not HOST:PORT"):
        node_addresses([text], None)


def test_addresses_in_one_option_are_told_apart() -> None:
    """--node takes one address; several with commas are refused with the right form."""
    with pytest.raises(UsageError, match="HOST:PORT") as caught:
        node_addresses(["10.77.0.1,10.77.0.2"], None)
    assert "`nodes` HOST:PORT `nodes` HOST:PORT" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "It does not contain a line `nodes = [...]`."),
        ('nodes = "studio"', "Its `nodes` is not a list."),
        ("nodes = [", "Invalid"),
    ],
)
def test_nodes_file_that_names_nothing_says_what_it_lacks(tmp_path, text, why) -> None:
    """A nodes file without nodes is refused with the reason and a line that can be copied."""
    file = tmp_path / "nodes.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_nodes_file(file)
    assert why in caught.value.why
    assert 'nodes = ["192.168.1.7", "studio.local:50051"]' in caught.value.hint


OWN = Address("127.0.0.1", 50051)


def test_neighbours_are_the_nodes_of_the_cluster_and_the_given_ones(tmp_path, monkeypatch) -> None:
    """Those of SHARDHUB_NODES, or else of nodes.toml in the current folder, come before those of --neighbour."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHARDHUB_NODES", raising=False)
    assert neighbour_addresses((), own=OWN) == []
    (tmp_path / "nodes.toml").write_text('nodes = ["10.77.0.1"]')
    assert neighbour_addresses((), own=OWN) == ["10.77.0.1:50051"]
    monkeypatch.setenv("SHARDHUB_NODES", "10.77.0.2, 10.77.0.3:7")
    assert neighbour_addresses((), own=OWN) == ["10.77.0.2:50051", "10.77.0.3:7"]
    given = ["10.77.0.4", "10.77.0.2"]
    assert neighbour_addresses(given, own=OWN) == ["10.77.0.2:50051", "10.77.0.3:7", "10.77.0.4:50051"]
    assert neighbour_addresses(given, has_others=False) == ["10.77.0.4:50051", "10.77.0.2:50051"]
    with pytest.raises(UsageError, match="`neighbours`: 'x:0' is not HOST:PORT"):
        neighbour_addresses(["x:0"], own=OWN)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_node_is_not_its_own_neighbour(host) -> None:
    """A list that names every node of the cluster may name the one that reads it, by any of its names."""
    named = ["127.0.0.1", "localhost", "127.0.0.1:50052", "10.77.0.1"]
    assert neighbour_addresses(named, own=Address(host, 50051)) == ["127.0.0.1:50052", "10.77.0.1:50051"]


def resolver(*answers: tuple[socket.AddressFamily, str]):
    """A resolver that knows one name."""

    def getaddrinfo(host, port, **options):
        if host != "shardhub-nodes":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in answers]

    return getaddrinfo


def test_name_stands_for_a_node_at_each_of_its_addresses(monkeypatch) -> None:
    """`dns+NAME` is every address behind a name, each once, also in SHARDHUB_NODES and nodes.toml."""
    answers = [(socket.AF_INET, address) for address in ("10.1.0.9", "10.1.0.7", "10.1.0.9")]
    monkeypatch.setattr(socket, "getaddrinfo", resolver(*answers))
    assert node_addresses(["dns+shardhub-nodes"], None) == ["10.1.0.7:50051", "10.1.0.9:50051"]
    monkeypatch.setenv("SHARDHUB_NODES", "studio:7, dns+shardhub-nodes:9")
    assert node_addresses((), None) == ["studio:7", "10.1.0.7:9", "10.1.0.9:9"]
    assert has_changing(None)
    assert not has_changing(["studio"])


def test_node_with_two_families_is_named_once(monkeypatch) -> None:
    """A name with addresses of both families stands for its IPv4 addresses, one with IPv6 only for those."""
    both = [(socket.AF_INET6, "fd00::7"), (socket.AF_INET, "10.1.0.7")]
    monkeypatch.setattr(socket, "getaddrinfo", resolver(*both))
    assert each_address(Address("shardhub-nodes", 50051)) == ["10.1.0.7:50051"]
    monkeypatch.setattr(socket, "getaddrinfo", resolver(both[0]))
    assert each_address(Address("shardhub-nodes", 50051)) == ["[fd00::7]:50051"]


def test_name_without_addresses_is_left_to_whoever_dials_it(monkeypatch) -> None:
    """Before the first pod runs its name has no address: it is kept, so that a head reports it and waits for it."""
    monkeypatch.setattr(socket, "getaddrinfo", resolver())
    assert node_addresses(["dns+not-yet"], None) == ["not-yet:50051"]
    with pytest.raises(UsageError, match="is not HOST:PORT"):
        node_addresses(["dns+"], None)
