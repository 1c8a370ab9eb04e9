"""HOST:PORT as users and machines write it."""

from __future__ import annotations

import pytest

from shardhub.address import Address, ip_of
from shardhub.errors import AddressError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.77.0.1", "10.77.0.1", 50051),
        ("10.77.0.1:1234", "10.77.0.1", 1234),
        ("studio.local:7", "studio.local", 7),
        (" studio ", "studio", 50051),
        ("::1", "::1", 50051),
        ("[::1]", "::1", 50051),
        ("[::1]:7", "::1", 7),
        ("fd00::7", "fd00::7", 50051),
        ("[fe80::1%en0]:7", "fe80::1%en0", 7),
        ("::1:7", "::1:7", 50051),
    ],
)
def test_port_may_be_left_out(text, host, port) -> None:
    """A missing port is the default one, in every address family, and the printed form reads the same again."""
    address = Address.parse(text, port=50051)
    assert address == Address(host, port)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":50051",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "a:b",
            "http://a:1",
            "a b",
            "a/b:7",
            "a:1:2",
            "-a:1",
        ),
        *("[::1", "::1]:7", "[a]", "[studio]:7", "[::1]7", "[[::1]]:7", "::1:50051", "a:+1", "a:1_0", "a:٣"),
        "a" * 300 + ":1",
    ],
)
def test_malformed_addresses_are_refused(text) -> None:
    """URLs, ports beyond 65535, names in brackets and digits of other scripts are refused."""
    with pytest.raises(AddressError, match="is not HOST:PORT"):
        Address.parse(text, port=50051)


@pytest.mark.parametrize("text", ["studio", "::1", "[::1]", ":7", "studio:0"])
def test_what_is_left_out_needs_a_default(text) -> None:
    """Without a default an address must be complete, and port 0 is for listening only."""
    with pytest.raises(AddressError):
        Address.parse(text)


def test_what_listens_may_leave_out_its_host_and_ask_for_any_port() -> None:
    """`:0` means a free port on the default host."""
    assert Address.parse(":0", host="127.0.0.1", may_be_zero=True) == Address("127.0.0.1", 0)


def test_ip_is_read_without_its_interface() -> None:
    """A link-local address may name an interface, which does not affect whether the address is loopback."""
    assert ip_of("fe80::1%en0").is_link_local
    assert ip_of("127.0.0.1").is_loopback
    with pytest.raises(ValueError, match="studio"):
        ip_of("studio")
