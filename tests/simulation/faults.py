"""Faults: small values that say what fails, where, when and for how long.

A fault is data: it can be printed, drawn from a seed, left out to shrink a failing run, and put together with others.
To bring a new kind, write a frozen dataclass with `at_s`, `ends_s` and `strike(world)`, and add a line to
`tests.simulation.draw`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tests.simulation.world import World


class Fault(Protocol):
    """Something that fails.

    Attributes:
        at_s: When, in seconds since the simulation began.
    """

    @property
    def at_s(self) -> float: ...

    @property
    def ends_s(self) -> float:
        """The time at which everything is restored."""

    def strike(self, world: World) -> None:
        """Inject the fault, and schedule its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """A node's process ends as by SIGKILL.

    Attributes:
        back_s: Seconds until it is started again, empty; None if it never is.
        quietly: Its machine loses power: nobody is told.
        as_old: It comes back with a shard of an older pipeline, for `back_s` again.
        moved: It comes back at another address, of which heads that follow names hear.
    """

    at_s: float
    node: int
    back_s: float | None = 1.0
    quietly: bool = False
    as_old: bool = False
    moved: bool = False

    @property
    def ends_s(self) -> float:
        return self.at_s + (self.back_s or 0.0) * (2 if self.as_old else 1)

    def strike(self, world: World) -> None:
        node = world.nodes[self.node]
        world.tell(f"{node.name} is killed" + (", without a word" if self.quietly else ""))
        node.kill(quietly=self.quietly)
        if self.back_s is None:
            return
        if self.as_old:
            world.later(self.back_s, lambda: node.start(is_old=True))
            world.later(2 * self.back_s, lambda: (node.kill(), node.start()))
        else:
            world.later(self.back_s, lambda: node.start(moved=self.moved))


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """A host stops: its process by SIGSTOP, or its machine sleeps.

    Attributes:
        host: Index of a node, or -1 - index of a head.
        sleeps: The machine sleeps, so that its monotonic clock stands still.
    """

    at_s: float
    host: int
    for_s: float
    sleeps: bool = False

    @property
    def ends_s(self) -> float:
        return self.at_s + self.for_s

    def strike(self, world: World) -> None:
        host = world.host(self.host)
        world.tell(f"{host.name} {'falls asleep' if self.sleeps else 'freezes'} for {self.for_s:.2f} s")
        (world.loop.sleep_host if self.sleeps else world.loop.freeze)(host)
        world.network.changed(host)

        def wake() -> None:
            world.tell(f"{host.name} goes on")
            world.loop.wake(host)
            world.network.changed(host)

        world.later(self.for_s, wake)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A line from one host to another delivers nothing.

    Attributes:
        sender, receiver: As `Freeze.host`.
        both: Nor back.
    """

    at_s: float
    sender: int
    receiver: int
    for_s: float
    both: bool = True

    @property
    def ends_s(self) -> float:
        return self.at_s + self.for_s

    def strike(self, world: World) -> None:
        one, other = world.host(self.sender), world.host(self.receiver)
        ways = [(one, other), (other, one)] if self.both else [(one, other)]
        arrow = "<->" if self.both else "->"
        world.tell(f"nothing passes {one.name} {arrow} {other.name} for {self.for_s:.2f} s")
        for sender, receiver in ways:
            world.network.block(sender, receiver)

        def heal() -> None:
            world.tell(f"messages pass {one.name} {arrow} {other.name} again")
            for sender, receiver in ways:
                world.network.heal(world.now_named(sender), world.now_named(receiver))

        world.later(self.for_s, heal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """All connections between two hosts break."""

    at_s: float
    one: int
    other: int

    @property
    def ends_s(self) -> float:
        return self.at_s

    def strike(self, world: World) -> None:
        one, other = world.host(self.one), world.host(self.other)
        world.tell(f"connections of {one.name} and {other.name} break")
        world.network.reset(one, other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """A line becomes slow for a while."""

    at_s: float
    sender: int
    receiver: int
    for_s: float
    latency_s: float = 0.05
    bytes_per_s: float = 20_000.0

    @property
    def ends_s(self) -> float:
        return self.at_s + self.for_s

    def strike(self, world: World) -> None:
        one, other = world.host(self.sender), world.host(self.receiver)
        line = world.network.line(one, other)
        before = line.latency_s, line.bytes_per_s
        world.tell(f"{one.name} -> {other.name} takes {self.latency_s * 1000:.0f} ms for {self.for_s:.2f} s")
        line.latency_s, line.bytes_per_s = self.latency_s, self.bytes_per_s

        def restore() -> None:
            world.network.set_rate(one, other, latency_s=before[0], bytes_per_s=before[1])

        world.later(self.for_s, restore)


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """A node computes more slowly for a while, as beside another program."""

    at_s: float
    node: int
    for_s: float
    factor: float = 20.0

    @property
    def ends_s(self) -> float:
        return self.at_s + self.for_s

    def strike(self, world: World) -> None:
        node = world.nodes[self.node]
        world.tell(f"{node.name} computes {self.factor:.0f} times slower for {self.for_s:.2f} s")
        node.slowness *= self.factor

        def restore() -> None:
            node.slowness /= self.factor

        world.later(self.for_s, restore)


@dataclass(frozen=True, slots=True, kw_only=True)
class Squeeze:
    """A node has memory for fewer sessions for a while, and refuses to open more."""

    at_s: float
    node: int
    for_s: float

    @property
    def ends_s(self) -> float:
        return self.at_s + self.for_s

    def strike(self, world: World) -> None:
        node = world.nodes[self.node]
        world.tell(f"{node.name} is short of memory for {self.for_s:.2f} s")
        node.squeeze(is_short=True)
        world.later(self.for_s, lambda: node.squeeze(is_short=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Clog:
    """A host reads nothing that arrives for a while, though it runs and answers pings: the buffers of others fill."""

    at_s: float
    host: int
    for_s: float

    @property
    def ends_s(self) -> float:
        return self.at_s + self.for_s

    def strike(self, world: World) -> None:
        host = world.host(self.host)
        world.tell(f"{host.name} reads nothing for {self.for_s:.2f} s")
        world.network.clog(host)
        world.later(self.for_s, lambda: world.network.unclog(host))


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """A node's next steps raise an error, as upstream may."""

    at_s: float
    node: int
    num_steps: int = 1

    @property
    def ends_s(self) -> float:
        return self.at_s

    def strike(self, world: World) -> None:
        node = world.nodes[self.node]
        world.tell(f"the next {self.num_steps} steps of {node.name} break")
        node.num_to_break += self.num_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Lapse:
    """All leases of a node expire at once, as if their heads had been silent for too long."""

    at_s: float
    node: int

    @property
    def ends_s(self) -> float:
        return self.at_s

    def strike(self, world: World) -> None:
        node = world.nodes[self.node]
        world.tell(f"all leases on {node.name} end")
        node.lapse()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """A node drains and ends, and another process takes its address later."""

    at_s: float
    node: int
    back_s: float = 1.0

    @property
    def ends_s(self) -> float:
        return self.at_s + 2 * self.back_s

    def strike(self, world: World) -> None:
        node = world.nodes[self.node]
        world.tell(f"{node.name} drains")
        node.drain()
        world.later(self.back_s, node.kill)
        world.later(2 * self.back_s, node.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadGone:
    """A head's process ends without a message to anyone."""

    at_s: float
    head: int
    quietly: bool = False

    @property
    def ends_s(self) -> float:
        return self.at_s

    def strike(self, world: World) -> None:
        head = world.heads[self.head]
        world.tell(f"{head.name} is killed")
        head.kill(quietly=self.quietly)


@dataclass(frozen=True, slots=True, kw_only=True)
class DateJump:
    """A host's wall clock is changed."""

    at_s: float
    host: int
    by_s: float

    @property
    def ends_s(self) -> float:
        return self.at_s

    def strike(self, world: World) -> None:
        host = world.host(self.host)
        world.tell(f"the wall clock of {host.name} is set by {self.by_s:.0f} s")
        host.date_offset_s += self.by_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Joins:
    """A node that was absent at the start begins to serve."""

    at_s: float
    node: int

    @property
    def ends_s(self) -> float:
        return self.at_s

    def strike(self, world: World) -> None:
        world.nodes[self.node].start()
