"""Addresses of nodes as users write them."""

from __future__ import annotations

import pytest

from shardhub.errors import UsageError
from shardhub.usecases.addresses import node_addresses, read_nodes_file


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
