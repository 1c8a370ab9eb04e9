"""What a machine announces on the local network, and how an announcement of another is read.

Anybody in the network can announce anything. An announcement therefore only says where somebody may answer: who it is,
the TLS handshake tells.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardhub.address import MAX_PORT, Address, ip_of
from shardhub.naming import DIGEST_PATTERN
from shardhub.security.certificates import NAME_PATTERN

# Source: RFC 6763, section 7: the service's name, and the protocol that carries it.
SERVICE_TYPE = "_shardhub._tcp.local."
# A machine has fewer; more are an attack.
MAX_ADDRESSES = 16
_LABEL_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A machine that may be there.

    Attributes:
        name: The name that it gives itself.
        fingerprint: Of the authority of its cluster: sha256 in hexadecimal.
        port: Where its resident listens.
        hosts: Its IP addresses; a link-local one of IPv6 names the interface of this machine after `%`.
    """

    name: str
    fingerprint: str
    port: int
    hosts: tuple[str, ...]

    @property
    def addresses(self) -> tuple[str, ...]:
        """HOST:PORT for each of its addresses."""
        return tuple(str(Address(host, self.port)) for host in self.hosts)

    def properties(self) -> dict[str, str]:
        """What the record of text says: name and fingerprint, nothing else."""
        return {"name": self.name, "cluster": self.fingerprint}


def instance_name(name: str, fingerprint: str) -> str:
    """The instance under which a machine is announced: machines of other clusters may have the same name."""
    digest = hashlib.sha256(f"{fingerprint}/{name}".encode()).hexdigest()
    return f"{digest[:_LABEL_DIGITS]}.{SERVICE_TYPE}"


def read_announcement(
    properties: Mapping[bytes, bytes | None], port: int | None, hosts: Sequence[str]
) -> Announcement | None:
    """Read an announcement; None if it is malformed, as no machine of ours makes such.

    Args:
        properties: Its record of text.
        port: Its port.
        hosts: Its addresses; those beyond `MAX_ADDRESSES`, and those that no machine has, are dropped.
    """
    name, fingerprint = (_text(properties.get(key)) for key in (b"name", b"cluster"))
    if not re.fullmatch(NAME_PATTERN, name) or not re.fullmatch(DIGEST_PATTERN, fingerprint):
        return None
    usable = tuple(dict.fromkeys(host for host in hosts if _is_usable(host)))[:MAX_ADDRESSES]
    if port is None or not 0 < port <= MAX_PORT or not usable:
        return None
    return Announcement(name=name, fingerprint=fingerprint, port=port, hosts=usable)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("ascii", "replace")


def _is_usable(host: str) -> bool:
    try:
        address = ip_of(host)
    except ValueError:
        return False
    # A link-local address of IPv6 leads nowhere without the interface over which it was announced.
    is_incomplete = address.version == 6 and address.is_link_local and "%" not in host
    return not (address.is_unspecified or address.is_multicast or address.is_reserved or is_incomplete)
