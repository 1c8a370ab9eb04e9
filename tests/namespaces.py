"""Machines for tests: network namespaces of Linux, on a network of their own, each with its own interfaces."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

_HOLD = ["cat"]  # a process that lives until its input is closed


@dataclass(frozen=True)
class Machine:
    """A namespace that a process holds open."""

    name: str
    pid: int

    def command(self, *words: str) -> list[str]:
        """The words of a command that runs there."""
        return ["nsenter", "--target", str(self.pid), "--user", "--net", "--preserve-credentials", *words]

    def run(self, *words: str) -> str:
        """Run a command there, and return what it prints."""
        return subprocess.run(self.command(*words), check=True, capture_output=True, text=True).stdout

    def python(self, program: str, *arguments: str) -> list[str]:
        """The words of a Python program that runs there."""
        return self.command(sys.executable, "-c", program, *arguments)


def can_make() -> bool:
    """Whether this system lets a test make networks."""
    if sys.platform != "linux":
        return False
    try:
        made = subprocess.run(
            ["unshare", "-rn", "ip", "link", "add", "lan", "type", "bridge"], capture_output=True, check=False
        )
    except OSError:
        return False
    return made.returncode == 0


@contextmanager
def network(*names: str, prefix: str = "10.77.0", has_router: bool = False) -> Iterator[dict[str, Machine]]:
    """Machines on one network, with the addresses PREFIX.1, PREFIX.2 and so on.

    Args:
        has_router: Whether each is in a network of its own instead, behind a router without multicast; its address is
            then that of `routed`.
    """
    with ExitStack() as stack:
        middle = Machine("middle", _held(stack, ["unshare", "-rn", *_HOLD]))
        if has_router:
            middle.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        else:
            middle.run("ip", "link", "add", "lan", "type", "bridge", "mcast_snooping", "0")
            middle.run("ip", "link", "set", "lan", "up")
        machines = {}
        for number, name in enumerate(names, start=1):
            machine = Machine(name, _held(stack, middle.command("unshare", "-n", *_HOLD)))
            port = f"port{number}"
            middle.run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(machine.pid))
            machine.run("ip", "link", "set", "lo", "up")
            machine.run("ip", "link", "set", "eth0", "up")
            if has_router:
                middle.run("ip", "address", "add", f"10.{number}.0.1/24", "dev", port)
                machine.run("ip", "address", "add", routed(number) + "/24", "dev", "eth0")
            else:
                middle.run("ip", "link", "set", port, "master", "lan")
                machine.run("ip", "address", "add", f"{prefix}.{number}/24", "dev", "eth0")
            middle.run("ip", "link", "set", port, "up")
            if has_router:
                machine.run("ip", "route", "add", "default", "via", f"10.{number}.0.1")
            machines[name] = machine
        yield machines


def routed(number: int) -> str:
    """Address of the machine of a number, from 1, behind a router."""
    return f"10.{number}.0.2"


def _held(stack: ExitStack, words: Sequence[str]) -> int:
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stack.callback(process.wait)
    stack.callback(process.stdout.close)
    stack.callback(process.stdin.close)
    # `unshare` becomes the command once the namespace is there; `cat` then repeats a line.
    process.stdin.write(b"ready\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"ready\n", f"{words} did not start"
    return process.pid
