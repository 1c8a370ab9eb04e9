"""Which of several addresses of a machine is tried first and which is taken."""

from __future__ import annotations

import ipaddress

import pytest

from shardhub.discovery.choice import MeasuredAddress, fastest, for_others, in_order
from shardhub.discovery.interfaces import Interface, Kind, announced_hosts, kind_of, own_interfaces


def interface(name: str, address: str) -> Interface:
    """An interface from ADDRESS/PREFIX, as `own_interfaces` makes it."""
    host, _, length = address.partition("/")
    network = ipaddress.ip_network(f"{host.partition('%')[0]}/{length}", strict=False)
    return Interface(name=name, host=host, network=network)


# A Mac on Ethernet, with the Thunderbolt bridge, a VPN, and a network of virtual machines.
STUDIO = [
    interface("lo0", "127.0.0.1/8"),
    interface("lo0", "::1/128"),
    interface("utun4", "100.101.1.2/32"),
    interface("utun5", "10.8.0.2/24"),
    interface("en0", "192.168.1.5/24"),
    interface("en0", "fe80::5%en0/64"),
    interface("en0", "2001:470::5/64"),
    interface("bridge0", "169.254.7.5/16"),
    interface("docker0", "172.17.0.1/16"),
]


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("192.168.1.7", Kind.NEAR),
        ("169.254.9.9", Kind.NEAR),
        ("fe80::7%en0", Kind.NEAR),
        ("2001:470::7", Kind.NEAR),
        ("10.1.2.3", Kind.PRIVATE),
        ("172.17.0.2", Kind.PRIVATE),
        ("studio.local", Kind.PRIVATE),
        ("9.9.9.9", Kind.PUBLIC),
        ("2001:4860::1", Kind.PUBLIC),
        ("10.8.0.9", Kind.VPN),
        ("100.101.1.3", Kind.VPN),
        ("fd7a:115c:a1e0::3", Kind.VPN),
    ],
)
def test_the_kind_of_an_address(host, kind):
    """An address is near if an interface is in its network, and a VPN's where that interface is one's."""
    assert kind_of(host, STUDIO) is kind


def test_near_addresses_are_tried_first():
    """The order is by kind, else as given; a VPN's address is the last."""
    addresses = ["100.101.1.3:1", "9.9.9.9:1", "10.1.2.3:1", "192.168.1.7:1", "169.254.9.9:1", "9.9.9.9:1"]
    assert in_order(addresses, STUDIO) == [
        "192.168.1.7:1",
        "169.254.9.9:1",
        "10.1.2.3:1",
        "9.9.9.9:1",
        "100.101.1.3:1",
    ]


def measured(address: str, round_trip_ms: float, megabytes_per_s: float | None = None) -> MeasuredAddress:
    rate = None if megabytes_per_s is None else megabytes_per_s * 1e6
    return MeasuredAddress(address=address, round_trip_s=round_trip_ms / 1e3, bytes_per_s=rate)


WIFI = measured("192.168.1.7:1", 3.0, 40)
CABLE = measured("192.168.1.8:1", 0.4, 110)
THUNDERBOLT = measured("169.254.9.9:1", 0.3, 2000)
VPN = measured("100.101.1.3:1", 0.2, 5000)


def test_the_fastest_address_is_taken():
    """Round trip and rate count together, whatever network it is in."""
    assert fastest([WIFI, CABLE, THUNDERBOLT], STUDIO) == THUNDERBOLT.address
    assert fastest([WIFI, CABLE], STUDIO) == CABLE.address
    assert fastest([measured("10.1.1.1:1", 0.5), measured("10.1.1.2:1", 0.4)], STUDIO) == "10.1.1.2:1"


def test_a_vpn_is_taken_only_where_nothing_else_answers():
    """Even a VPN that measures faster gives way: it costs the processor that runs the model."""
    assert fastest([VPN, WIFI], STUDIO) == WIFI.address
    assert fastest([VPN], STUDIO) == VPN.address
    assert fastest([], STUDIO) is None


def test_the_address_in_use_is_kept_until_another_is_clearly_faster():
    """Noise in measurements changes no connection; an address that no longer answers is left."""
    similar = measured("192.168.1.9:1", 0.39, 112)
    assert fastest([CABLE, similar], STUDIO, current=CABLE.address) == CABLE.address
    assert fastest([CABLE, similar], STUDIO) == similar.address
    assert fastest([CABLE, THUNDERBOLT], STUDIO, current=CABLE.address) == THUNDERBOLT.address
    assert fastest([WIFI], STUDIO, current=CABLE.address) == WIFI.address


def test_an_address_that_others_can_use_is_taken_first():
    """A link-local address of IPv6 is taken where no other answers but a VPN's, however fast it is."""
    scoped = measured("[fe80::7%en0]:1", 0.1, 5000)
    assert fastest([scoped, WIFI], STUDIO) == WIFI.address
    assert fastest([scoped, VPN], STUDIO) == scoped.address


def test_others_are_not_told_of_addresses_of_this_machine_alone():
    """A scope id and loopback mean nothing elsewhere; the Thunderbolt bridge's addresses may."""
    addresses = ["127.0.0.1:1", "[::1]:1", "[fe80::7%en0]:1", "169.254.9.9:1", "[2001:470::7]:1", "mini.local:1"]
    assert for_others(addresses) == ("169.254.9.9:1", "[2001:470::7]:1", "mini.local:1")


def test_what_is_announced():
    """All addresses but loopback and virtual networks, VPNs last; one alone where only that is listened on."""
    assert announced_hosts(STUDIO, "::") == (
        "192.168.1.5",
        "2001:470::5",
        "169.254.7.5",
        "fe80::5",
        "100.101.1.2",
        "10.8.0.2",
    )
    assert announced_hosts(STUDIO, "0.0.0.0") == ("192.168.1.5", "169.254.7.5", "100.101.1.2", "10.8.0.2")
    assert announced_hosts(STUDIO, "127.0.0.1") == ("127.0.0.1",)


def test_own_interfaces_are_read():
    """This machine's loopback is among them, and leads inside."""
    loopback = next(one for one in own_interfaces() if one.host == "127.0.0.1")
    assert loopback.is_inside
    assert not loopback.is_vpn
