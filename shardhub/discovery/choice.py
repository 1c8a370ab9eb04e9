"""Which of a machine's addresses to take: an order to try them in, and the fastest of those that were measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shardhub.address import Address, ip_of
from shardhub.discovery.interfaces import Interface, Kind, kind_of
from shardhub.errors import AddressError

# What a chunk of a prompt is, about: 64 tokens of a model with 8192 values of 2 bytes each. A decode step is small, so
# that it takes the round trip alone.
_CHUNK_BYTES = 1 << 20
# Another address is taken only if it is this much faster: measurements vary, and every change costs new connections.
_GAIN = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredAddress:
    """How fast a machine was reached at one of its addresses.

    Attributes:
        address: HOST:PORT.
        bytes_per_s: None where only the round trip was measured.
    """

    address: str
    round_trip_s: float
    bytes_per_s: float | None = None

    @property
    def step_s(self) -> float:
        """Seconds for a decode step and a chunk of a prompt, which is what links carry."""
        chunk_s = 0.0 if self.bytes_per_s is None else _CHUNK_BYTES / self.bytes_per_s
        return self.round_trip_s + chunk_s


def in_order(addresses: Iterable[str], interfaces: Sequence[Interface]) -> list[str]:
    """Addresses of another machine in the order to try them: near ones first, VPNs last, else as they were given.

    Args:
        addresses: HOST:PORT.
        interfaces: This machine's.
    """
    return sorted(dict.fromkeys(addresses), key=lambda text: kind_of(_host(text), interfaces))


def fastest(
    measured: Sequence[MeasuredAddress], interfaces: Sequence[Interface], *, current: str | None = None
) -> str | None:
    """The address to take of those that answer; one through a VPN only where no other answers.

    Heads hand the addresses of nodes to other nodes, so one that only this machine can use comes last but for these.

    Args:
        measured: All that answer as the machine.
        interfaces: This machine's.
        current: The address in use, which is kept unless another one is clearly faster.

    Returns:
        HOST:PORT; None if none answers.
    """
    direct = [one for one in measured if kind_of(_host(one.address), interfaces) is not Kind.VPN]
    usable = [one for one in direct if _is_for_others(_host(one.address))] or direct or measured
    if not usable:
        return None
    best = min(usable, key=lambda one: (one.step_s, one.address))
    kept = next((one for one in usable if one.address == current), None)
    if kept is not None and best.step_s > kept.step_s * _GAIN:
        return kept.address
    return best.address


def for_others(addresses: Iterable[str]) -> tuple[str, ...]:
    """Of the addresses at which this machine reaches another, those that a third machine can use too.

    A link-local address of IPv6 names an interface of this machine, and loopback is this machine.
    """
    return tuple(address for address in addresses if _is_for_others(_host(address)))


def _host(text: str) -> str:
    """The host in HOST:PORT; empty if the text is malformed."""
    try:
        return Address.parse(text).host
    except AddressError:
        return ""


def _is_for_others(host: str) -> bool:
    try:
        address = ip_of(host)
    except ValueError:
        return True
    return not (address.is_loopback or (address.is_link_local and address.version == 6))
