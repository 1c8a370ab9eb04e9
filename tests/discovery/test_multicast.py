"""Machines that notice each other by real multicast, each in a network namespace of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from shardhub.discovery.announcement import SERVICE_TYPE, Announcement
from shardhub.discovery.multicast import Intervals, Multicast
from shardhub.discovery.sightings import MAX_MACHINES, Sightings
from tests import namespaces
from tests.security.loop import in_loop
from tests.waiting import until

needs_networks = pytest.mark.skipif(not namespaces.can_make(), reason="networks of its own need Linux namespaces")
OURS, THEIRS = "ab" * 32, "cd" * 32
PORT = 50047


class Announcer:
    """A process that announces a machine, and prints whom it notices; see `tests.discovery.machine`."""

    def __init__(self, machine, fingerprint=OURS, name=None):
        words = [sys.executable, "-m", "tests.discovery.machine", name or machine.name, fingerprint, str(PORT)]
        self.process = subprocess.Popen(
            machine.command(*words), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.seen = {}

    def until_seen(self, *addresses):
        """Wait until these addresses are noticed, and return all that were, by name."""
        missing = set(addresses)
        for line in self.process.stdout:
            name, address = json.loads(line)
            self.seen.setdefault(name, []).append(address)
            missing.discard(address)
            if not missing:
                return self.seen
        raise AssertionError("the machine ended")


@contextmanager
def announcers(*made):
    try:
        yield made
    finally:
        for one in made:
            one.process.kill()
            one.process.wait()
            one.process.stdout.close()


@needs_networks
def test_machines_notice_each_other_and_their_new_addresses():
    """Each notices the other, not itself and no other cluster; an address that comes is announced at once."""
    with namespaces.network("studio", "mini", "stranger") as machines:
        studio, mini = Announcer(machines["studio"]), Announcer(machines["mini"])
        stranger = Announcer(machines["stranger"], fingerprint=THEIRS)
        with announcers(studio, mini, stranger):
            assert list(mini.until_seen(f"10.77.0.1:{PORT}")) == ["studio"]
            assert list(studio.until_seen(f"10.77.0.2:{PORT}")) == ["mini"]
            machines["mini"].run("ip", "address", "add", "169.254.3.4/16", "dev", "eth0")
            assert list(studio.until_seen(f"169.254.3.4:{PORT}")) == ["mini"]


@needs_networks
def test_link_local_addresses_alone_are_enough():
    """On a cable between two machines there are only link-local addresses of IPv6, which name the interface."""
    with namespaces.network("studio", "mini") as machines:
        for machine in machines.values():
            machine.run("ip", "-4", "address", "flush", "dev", "eth0")
        studio, mini = Announcer(machines["studio"]), Announcer(machines["mini"])
        with announcers(studio, mini):
            name, address = json.loads(mini.process.stdout.readline())
            assert name == "studio"
            assert address.startswith("[fe80::")
            assert "%" in address


_FLOOD = """
import sys
from zeroconf import DNSAddress, DNSOutgoing, DNSPointer, DNSService, DNSText, Zeroconf, const
responder = Zeroconf(interfaces=["10.77.0.3"])
service, ours = sys.argv[1:3]
for message in range(300):  # of ten each, as a receiver drops what comes faster
    out = DNSOutgoing(const._FLAGS_QR_RESPONSE | const._FLAGS_AA)
    for number in range(10 * message, 10 * message + 10):
        # Escapes, dots and letters that a machine's name cannot have; every other one is well-formed.
        odd = ("\\x1b[31m", "a.b", "\\\\032", "caf\\u00e9", "%s%n")[number % 5]
        instance, host = f"{odd}{number}.{service}", f"h{number}.local."
        name = f"s{number}" if number % 2 else odd
        text = b"".join(bytes([len(one)]) + one for one in (b"name=" + name.encode(), b"cluster=" + ours.encode()))
        out.add_answer_at_time(DNSPointer(service, const._TYPE_PTR, const._CLASS_IN, 4500, instance), 0)
        out.add_answer_at_time(DNSService(instance, const._TYPE_SRV, const._CLASS_IN, 120, 0, 0, 50047, host), 0)
        out.add_answer_at_time(DNSText(instance, const._TYPE_TXT, const._CLASS_IN, 4500, text), 0)
        if number % 3:  # else without an address, which must be asked for
            out.add_answer_at_time(DNSAddress(host, const._TYPE_A, const._CLASS_IN, 120, b"\\x0a\\x4d\\x00\\x03"), 0)
    responder.send(out)
responder.close()
"""


@needs_networks
def test_a_flood_of_announcements_hides_no_machine():
    """After thousands of announcements, half of them malformed, a machine's new address is noticed."""
    with namespaces.network("studio", "mini", "stranger") as machines:
        studio, mini = Announcer(machines["studio"]), Announcer(machines["mini"])
        with announcers(studio, mini):
            studio.until_seen(f"10.77.0.2:{PORT}")
            flood = machines["stranger"].python(_FLOOD, SERVICE_TYPE, OURS)
            subprocess.run(flood, check=True, capture_output=True)
            machines["mini"].run("ip", "address", "add", "10.77.0.99/24", "dev", "eth0")
            seen = studio.until_seen(f"10.77.0.99:{PORT}")
    assert f"10.77.0.2:{PORT}" in seen["mini"]
    assert 10 < len(seen) <= MAX_MACHINES
    assert all(name == "mini" or name.startswith("s") for name in seen)


@pytest.mark.parametrize("trouble", [OSError("no such device"), RuntimeError("no interfaces")])
@in_loop
async def test_trouble_with_multicast_is_a_warning(trouble, monkeypatch, caplog):
    """What fails is said once, and tried again; the process goes on."""
    attempts = []

    def fail(**settings):
        attempts.append(settings)
        raise trouble

    monkeypatch.setattr("zeroconf.asyncio.AsyncZeroconf", fail)
    multicast = Multicast(
        Announcement(name="studio", fingerprint=OURS, port=PORT, hosts=()),
        Sightings(OURS, "studio", clock=time.monotonic),
        hosts=tuple,
        intervals=Intervals(retry_s=0.01),
    )
    running = asyncio.create_task(multicast.run())

    async def is_retried():
        return len(attempts) > 4

    with caplog.at_level(logging.WARNING):
        await until(is_retried)
    running.cancel()
    assert len([one for one in caplog.records if "multicast does not work here" in one.message]) == 1


@in_loop
async def test_a_machine_without_zeroconf_discovers_nobody(monkeypatch, caplog):
    """Where the package is missing or broken, a warning says so, and the process goes on."""
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    multicast = Multicast(
        Announcement(name="studio", fingerprint=OURS, port=PORT, hosts=()),
        Sightings(OURS, "studio", clock=time.monotonic),
        hosts=tuple,
    )
    running = asyncio.create_task(multicast.run())

    async def is_reported():
        return "zeroconf cannot be imported" in caplog.text

    await until(is_reported)
    assert not running.done()
    running.cancel()
