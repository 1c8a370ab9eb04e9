"""HOST:PORT addresses: the one place where they are read, written and compared."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from shardhub.errors import AddressError
from shardhub.naming import NODE_PORT

MAX_PORT = 65535
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})?")
_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port.

    Attributes:
        host: A name, an IPv4 address, or an IPv6 address without brackets.
        port: Port; 0 asks for a free one when listening.
    """

    host: str
    port: int

    @classmethod
    def parse(
        cls, text: str, *, host: str | None = None, port: int | None = None, may_be_zero: bool = False
    ) -> Address:
        """Read `HOST:PORT`; IPv6 is in brackets, or bare if no port follows.

        Args:
            host: Default if the host is left out (`:PORT`).
            port: Default if the port is left out (`HOST`).
            may_be_zero: Whether port 0 is allowed, as it is for listening.

        Raises:
            AddressError: The text is malformed, or leaves out a part that has no default.
        """
        text = text.strip()
        name, colon, digits = text.rpartition(":")
        is_bare = _is_ipv6(text)
        if not colon or digits.endswith("]") or is_bare:
            name, digits = text, "" if port is None else str(port)
        name = name or host or ""
        if name.startswith("[") and name.endswith("]"):
            name = name[1:-1]
            is_host = _is_ipv6(name)
        else:
            is_host = is_bare or _HOST.fullmatch(name) is not None
        if not (is_host and _is_port(digits, may_be_zero=may_be_zero)):
            raise AddressError(
                f"{text[:_SHOWN]!r} is not HOST:PORT.", hint=f"Write it like 192.168.1.7:{port or NODE_PORT}."
            )
        return cls(name, int(digits))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def ip_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Parse an IP address; the interface that a link-local address may name after `%` is dropped.

    Raises:
        ValueError: The text is a host name or malformed.
    """
    return ipaddress.ip_address(text.partition("%")[0])


def _is_ipv6(text: str) -> bool:
    if ":" not in text:
        return False
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _is_port(digits: str, *, may_be_zero: bool) -> bool:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(MAX_PORT))):
        return False
    return (0 if may_be_zero else 1) <= int(digits) <= MAX_PORT
