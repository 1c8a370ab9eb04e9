"""The Host headers by which a server may be called."""

from __future__ import annotations

import pytest

from shardhub.listening import HostNames

HOSTS = HostNames(["Studio.local"], any_address=False)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "localhost.:80",
        "127.0.0.1",
        "127.0.0.9:1",
        "[::1]",
        "[::1]:8080",
        "studio.local",
        "STUDIO.LOCAL.:443",
        "localhost:",
    ],
)
def test_own_names_are_known(host: str) -> None:
    """A server answers by its names and loopback's addresses, with or without a port."""
    assert host in HOSTS


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "192.168.1.7",
        "evil@127.0.0.1",
        "127.0.0.1@evil.example",
        '127.0.0.1:80"><script>',
        "localhost/evil",
        "localhost?x",
        "localhost#",
        "localhost:80:80",
        "localhost:port",
        "localhost:123456",
        " localhost",
        "::1",
        "[::1",
        "[::1]evil",
        "localhost\r\nX: y",
        "localhost\x00",
    ],
)
def test_odd_hosts_are_strange(host: str) -> None:
    """Whatever is not a name or an address with a port is refused, even if a part of it is known."""
    assert host not in HOSTS


def test_any_address_is_no_name() -> None:
    """A server on all addresses is called by any of them, not by any name."""
    anywhere = HostNames([], any_address=True)
    assert "10.1.0.7:8080" in anywhere
    assert "[fd00::7]" in anywhere
    assert "evil.example" not in anywhere
    assert "evil@10.1.0.7" not in anywhere
