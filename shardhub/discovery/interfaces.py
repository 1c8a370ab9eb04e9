"""This machine's network interfaces, and which of their addresses other machines may use."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from shardhub.address import ip_of
from shardhub.discovery.announcement import MAX_ADDRESSES

# Interfaces of virtual networks inside one machine, such as Docker's: many machines have the same addresses there.
_INSIDE = re.compile(
    r"(docker|br-[0-9a-f]{12}|veth|virbr|vnet|cni|flannel|cali|kube|podman|lxc|lxdbr|vmnet|anpi|awdl|llw)"
)
_VPN = re.compile(r"(utun|tun|tap|wg|tailscale|zt|ppp|ipsec|nordlynx|proton)")
# Tailscale's addresses, whatever its interface is called. Source: tailscale.com/kb/1015/100.x-addresses.
_VPN_NETWORKS = (ipaddress.ip_network("100.64.0.0/10"), ipaddress.ip_network("fd7a:115c:a1e0::/48"))


class Kind(IntEnum):
    """How an address reaches a machine, the best first, where nothing was measured.

    NEAR: over a network that both machines are in.
    PRIVATE: over a router, within private networks.
    PUBLIC: over a router.
    VPN: encrypted once more on the way, by a processor that runs the model too.
    """

    NEAR = 0
    PRIVATE = 1
    PUBLIC = 2
    VPN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """An address of this machine on one of its interfaces.

    Attributes:
        name: The interface's, such as en0 or bridge0 (the Thunderbolt bridge).
        host: The address; a link-local one of IPv6 names its interface after `%`.
        network: The network that it is in.
    """

    name: str
    host: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network

    @property
    def is_vpn(self) -> bool:
        """Whether it leads through a VPN."""
        return _VPN.match(self.name) is not None or is_vpn_address(self.host)

    @property
    def is_inside(self) -> bool:
        """Whether it leads to this machine only: loopback, or a virtual network."""
        return ip_of(self.host).is_loopback or _INSIDE.match(self.name) is not None


def is_vpn_address(host: str) -> bool:
    """Whether an address is that of a known VPN."""
    address = ip_of(host)
    return any(address.version == network.version and address in network for network in _VPN_NETWORKS)


def own_interfaces() -> list[Interface]:
    """The addresses of this machine's interfaces that are up."""
    import psutil

    status = psutil.net_if_stats()
    made = []
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            if one.family not in (socket.AF_INET, socket.AF_INET6) or (name in status and not status[name].isup):
                continue
            host = one.address
            try:
                network = ipaddress.ip_network(f"{host.partition('%')[0]}/{_prefix(one.netmask)}", strict=False)
            except ValueError:
                continue
            if ip_of(host).is_link_local and ":" in host and "%" not in host:
                host = f"{host}%{name}"
            made.append(Interface(name=name, host=host, network=network))
    return made


def announced_hosts(interfaces: Sequence[Interface], listening: str) -> tuple[str, ...]:
    """The addresses of this machine at which others may reach what listens on a host, the best first.

    Args:
        listening: A host to listen on: an address, or 0.0.0.0 or :: for all.
    """
    if not ip_of(listening).is_unspecified:
        return (listening,)
    usable = [
        one
        for one in interfaces
        if not one.is_inside and (ip_of(listening).version == 6 or ip_of(one.host).version == 4)
    ]
    usable.sort(key=lambda one: (one.is_vpn, ip_of(one.host).is_link_local, ip_of(one.host).version, one.name))
    # A link-local address of IPv6 is announced without the interface, whose name says nothing elsewhere.
    return tuple(dict.fromkeys(one.host.partition("%")[0] for one in usable))[:MAX_ADDRESSES]


def kind_of(host: str, interfaces: Sequence[Interface]) -> Kind:
    """How an address of another machine is reached from these interfaces; a host name counts as a private address."""
    try:
        address = ip_of(host)
    except ValueError:
        return Kind.PRIVATE
    if is_vpn_address(host):
        return Kind.VPN
    scope = host.partition("%")[2]
    for one in interfaces:
        is_there = address.version == one.network.version and address in one.network
        if is_there and not one.is_inside and scope in ("", one.name):
            return Kind.VPN if one.is_vpn else Kind.NEAR
    if address.is_link_local or address.is_loopback:
        return Kind.NEAR
    return Kind.PRIVATE if address.is_private else Kind.PUBLIC


def _prefix(netmask: str | None) -> str:
    """A netmask as the length of a prefix; of IPv6 it is written as an address, or left out."""
    if not netmask:
        return "64"
    if ":" not in netmask:
        return netmask
    return str(int(ipaddress.IPv6Address(netmask)).bit_count())
