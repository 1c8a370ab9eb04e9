"""Where a server may listen, and by which names it may be called.

It listens on loopback, elsewhere only if that is safe or the user allows it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from shardhub.address import ip_of
from shardhub.errors import AddressError

# A Host header: a name or an address, and perhaps a port. Source: RFC 9110, section 7.2.
_HOST_HEADER = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+(%[A-Za-z0-9._~-]+)?\]|[A-Za-z0-9._-]+)(:[0-9]{0,5})?")


def is_loopback(host: str) -> bool:
    """Whether a host to listen on can be reached from this machine only.

    Raises:
        AddressError: The host does not resolve.
    """
    return all(ip_of(address).is_loopback for address in _resolved(host))


def is_unspecified(host: str) -> bool:
    """Whether a host to listen on stands for all addresses of this machine."""
    try:
        return ip_of(host).is_unspecified
    except ValueError:
        return False


def check_reach(host: str, *, is_safe: bool, why: str, hint: str, what: str = "listen") -> None:
    """Refuse to listen off loopback if that is not safe.

    Args:
        is_safe: Whether a key, a certificate or the user's consent makes it safe.
        why: What could happen.
        hint: What to do.
        what: What is refused.

    Raises:
        AddressError: The host is off loopback and not safe, or does not resolve.
    """
    if not is_loopback(host) and not is_safe:
        raise AddressError(f"Refusing to {what} on {host}.", why=why, hint=hint)


def own_addresses(family: socket.AddressFamily = socket.AF_INET) -> list[str]:
    """Addresses of this machine, loopback last, as it serves only processes on this machine; none of a single link."""
    import psutil

    addresses = [
        address.address
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family == family and "%" not in address.address
    ]
    return sorted(addresses, key=lambda address: ip_of(address).is_loopback)


def addresses_at(host: str) -> list[str]:
    """Addresses at which a host to listen on can be called: all of this machine's where it stands for them.

    Raises:
        AddressError: The host does not resolve.
    """
    if is_unspecified(host):
        return own_addresses(socket.AF_INET6 if ":" in host else socket.AF_INET)
    return sorted(_resolved(host))


def _resolved(host: str) -> set[str]:
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise AddressError(
            f"{host} is not a valid address.", why=f"{error}.", hint="Give one of this machine's addresses."
        ) from error


class HostNames:
    """The Host headers by which a server may be called, besides those of loopback.

    A page that a browser loaded from elsewhere may point its own host name at this machine (DNS rebinding); its Host
    header reveals that.

    Args:
        names: Host names.
        any_address: Whether any IP address is accepted; unlike a name, an address cannot be rebound.
    """

    def __init__(self, names: Collection[str], *, any_address: bool) -> None:
        self._names = frozenset(name.lower() for name in names) | {"localhost"}
        self._any_address = any_address

    def __contains__(self, host: str) -> bool:
        header = _HOST_HEADER.fullmatch(host)
        if header is None:
            return False
        name = header["name"].strip("[]").lower().removesuffix(".")
        try:
            return name in self._names or ipaddress.ip_address(name).is_loopback or self._any_address
        except ValueError:
            return False


@contextmanager
def listen_on(host: str, port: int, *, backlog: int = 128) -> Iterator[socket.socket]:
    """A listening socket, closed at the end of the block.

    Raises:
        AddressError: The address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        raise AddressError(
            f"Cannot listen on {host}, port {port}.",
            why=f"{error.strerror or error}.",
            hint="Choose another port with `port`, or 0 for any free one.",
        ) from error
    with listener:
        # Connections inherit this option. asyncio sets it only on sockets made with an explicit protocol; without it
        # every answer of two segments waits 40 ms for the client's delayed acknowledgement (measured).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listener
