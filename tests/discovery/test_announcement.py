"""What a machine reads in announcements, which anybody may make."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardhub.discovery.announcement import MAX_ADDRESSES, SERVICE_TYPE, instance_name, read_announcement
from shardhub.discovery.sightings import LIFE_S, MAX_MACHINES, Sightings

OURS, THEIRS = "ab" * 32, "cd" * 32


def announced(name="mini", fingerprint=OURS, port=50047, hosts=("192.168.1.7",)):
    """An announcement as it is read from the network."""
    return read_announcement({b"name": name.encode(), b"cluster": fingerprint.encode()}, port, hosts)


class Setting:
    """Sightings on a clock that the test sets."""

    def __init__(self, *members):
        self.now = 0.0
        self.sightings = Sightings(OURS, "studio", members=lambda: members, clock=lambda: self.now)

    def see(self, **what):
        return self.sightings.add(announced(**what))


def test_an_announcement_is_read_whole():
    """Name, cluster and addresses come through; what is written is read again."""
    read = announced(hosts=("192.168.1.7", "fe80::1%eth0", "fd00::7"))
    assert read.addresses == ("192.168.1.7:50047", "[fe80::1%eth0]:50047", "[fd00::7]:50047")
    assert read.properties() == {"name": "mini", "cluster": OURS}


@pytest.mark.parametrize(
    "malformed",
    [
        {"name": ""},
        {"name": "Mini\x1b[31m"},
        {"name": "mini._shardhub._tcp.local."},
        {"name": "a" * 64},
        {"name": "mini\n"},
        {"fingerprint": OURS[:-1]},
        {"fingerprint": OURS.upper()},
        {"port": 0},
        {"port": None},
        {"port": 65536},
        {"hosts": ()},
        {"hosts": ("0.0.0.0", "224.0.0.251", "255.255.255.255", "ff02::fb", "fe80::1", "studio.local")},
    ],
)
def test_a_malformed_announcement_is_dropped(malformed):
    """Names with escapes, ports that cannot be, and addresses that lead nowhere are of no machine of ours."""
    assert announced(**malformed) is None


@given(
    st.dictionaries(st.sampled_from([b"name", b"cluster", b"x"]), st.none() | st.binary(max_size=80)),
    st.none() | st.integers(),
    st.lists(st.text(max_size=40), max_size=40),
)
def test_any_announcement_can_be_read(properties, port, hosts):
    """Whatever comes is dropped or read within bounds."""
    read = read_announcement(properties, port, hosts)
    assert read is None or len(read.hosts) <= MAX_ADDRESSES


def test_machines_of_one_name_in_two_clusters_have_two_instances():
    """An instance stands for one machine of one cluster, and is a plain label."""
    names = {instance_name("mini", OURS), instance_name("mini", THEIRS), instance_name("box", OURS)}
    assert len(names) == 3
    assert all(name.removesuffix(SERVICE_TYPE)[:-1].isalnum() for name in names)


def test_only_the_own_cluster_is_seen():
    """Other clusters and this machine itself are left out; that others are there can be said."""
    setting = Setting()
    assert not setting.see(fingerprint=THEIRS)
    assert not setting.see(name="studio")
    assert setting.see()
    assert not setting.see()
    assert setting.sightings.addresses() == {"mini": ("192.168.1.7:50047",)}
    assert setting.sightings.other_clusters == (THEIRS,)


def test_a_false_announcement_stands_beside_the_true_one():
    """Who announces a member's name with other addresses hides nothing."""
    setting = Setting("mini")
    setting.see()
    assert setting.see(hosts=("192.168.1.66",))
    assert setting.sightings.addresses()["mini"] == ("192.168.1.66:50047", "192.168.1.7:50047")


def test_thousands_of_announcements_displace_no_member():
    """Memory is bounded in machines, addresses and clusters, and members stay."""
    setting = Setting("mini")
    setting.see()
    for number in range(5000):
        setting.see(name=f"stranger-{number}")
        setting.see(name="box", hosts=(f"10.0.{number // 250}.{number % 250 + 1}",))
        setting.see(fingerprint=f"{number:064x}")
    seen = setting.sightings.addresses()
    assert len(seen) == MAX_MACHINES
    assert seen["mini"] == ("192.168.1.7:50047",)
    assert len(seen["box"]) == MAX_ADDRESSES
    assert len(setting.sightings.other_clusters) == 8


def test_stale_announcements_expire():
    """An address that is no longer announced is no longer tried, nor is a machine that says it is gone."""
    setting = Setting()
    setting.see()
    setting.now = LIFE_S - 1
    setting.see(hosts=("192.168.1.8",))
    setting.see(name="box")
    setting.now = LIFE_S
    assert setting.sightings.addresses()["mini"] == ("192.168.1.8:50047",)
    setting.sightings.remove("box")
    assert list(setting.sightings.addresses()) == ["mini"]
