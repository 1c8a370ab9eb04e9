"""The other machines that a resident knows: from whom it heard of each, where each may be reached, and when it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shardhub.errors import ShardhubError
from shardhub.placing.cluster import MAX_MACHINES
from shardhub.resident.machine import (
    MAX_ADDRESSES,
    MAX_LEFT,
    Introduction,
    KnownMachine,
    MachineFacts,
    MeasuredLink,
    NodeReport,
)

# A clock that differs by more is worth a remark: certificates are valid from an hour before they are made.
_CLOCK_DIFFERENCE_S = 60.0
_MAX_TROUBLE = 500
# The rest is refused for the same reason.
_MAX_REFUSALS = 4
# A machine that others name is called by then, also over a slow network; an invented name does not stay.
_HEARSAY_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquaintance:
    """One of them.

    Attributes:
        addresses: Where it may be reached, the best one first.
        seen_at: When somebody of the cluster last heard of it, on this machine's wall clock.
        facts, nodes: What it said of itself last; None if it never did to this machine.
        is_reachable: Whether it answered when it was last called.
        answered_at: When it did last, on the monotonic clock; None if it never did.
        trouble: Why it does not, if so.
        link: What was measured to it.
        refusals: Why it does not take orders that it was given.
        named_at: When another machine named it first; it has spoken for itself if `facts` is not None.
        clock_difference_s: How much its wall clock was ahead of this machine's.
    """

    name: str
    role: Literal["member", "node"] = "member"
    addresses: tuple[str, ...] = ()
    seen_at: float = 0.0
    facts: MachineFacts | None = None
    nodes: tuple[NodeReport, ...] = ()
    is_reachable: bool = False
    answered_at: float | None = None
    trouble: str = ""
    link: MeasuredLink | None = None
    refusals: tuple[str, ...] = ()
    named_at: float = 0.0
    clock_difference_s: float = 0.0

    @property
    def was_met(self) -> bool:
        """Whether it has spoken for itself, under its own certificate."""
        return self.facts is not None

    def as_document(self) -> KnownMachine:
        """As it is told to commands."""
        return KnownMachine(
            name=self.name,
            role=self.role,
            addresses=self.addresses,
            seen_at=self.seen_at,
            is_reachable=self.is_reachable,
            trouble=self.trouble,
            facts=self.facts,
            nodes=self.nodes,
        )


class KnownMachines:
    """The machines that a resident knows, without its own.

    Args:
        own: This machine's name.
        kept: Those that were known before.
        left: Names of machines that have left.
        now: This machine's wall clock.
    """

    def __init__(
        self, own: str, kept: Iterable[KnownMachine] = (), left: Iterable[str] = (), *, now: float = 0.0
    ) -> None:
        self._own = own
        self._left = set(left)
        self._by_name: dict[str, Acquaintance] = {}
        for each in kept:
            self._by_name[each.name] = Acquaintance(
                name=each.name,
                role=each.role,
                addresses=each.addresses,
                seen_at=each.seen_at,
                facts=each.facts,
                nodes=each.nodes,
                named_at=now,
            )

    def __iter__(self) -> Iterator[Acquaintance]:
        """All of them, by name."""
        return iter([self._by_name[name] for name in sorted(self._by_name)])

    def get(self, name: str) -> Acquaintance | None:
        """A machine; None if it is not known."""
        return self._by_name.get(name)

    def met(self, said: Introduction, addresses: Sequence[str], *, now: float) -> bool:
        """A machine has spoken for itself; returns whether it was unknown.

        Args:
            addresses: Where it was met.
            now: This machine's wall clock.
        """
        facts = said.facts
        known = self._by_name.get(facts.name)
        if facts.name in self._left or (known is None and not self._has_room(facts.name)):
            return False
        before = known or Acquaintance(name=facts.name)
        # The address in use stays first. Those that it no longer has are kept last: it may have them again.
        used = before.addresses[:1] if before.is_reachable else ()
        merged = _merged(used, addresses, facts.addresses, before.addresses)
        self._by_name[facts.name] = replace(
            before,
            role=facts.role,
            addresses=merged,
            seen_at=now,
            facts=facts,
            nodes=tuple(node.brief for node in said.nodes),
            clock_difference_s=said.at - now,
        )
        return known is None

    def reached(self, name: str, address: str, *, now: float) -> bool:
        """A machine has answered at an address; returns whether it did not answer before.

        Args:
            now: The monotonic clock.
        """
        known = self._by_name.get(name)
        if known is None:
            return False
        addresses = known.addresses if known.is_reachable else _merged((address,), known.addresses)
        self._by_name[name] = replace(known, is_reachable=True, answered_at=now, trouble="", addresses=addresses)
        return not known.is_reachable

    def lost(self, name: str, error: ShardhubError) -> None:
        """A machine answers at none of its addresses."""
        if (known := self._by_name.get(name)) is not None:
            self._by_name[name] = replace(known, is_reachable=False, trouble=str(error)[:_MAX_TROUBLE])

    def refused(self, name: str, errors: Mapping[str, ShardhubError]) -> bool:
        """A machine has refused orders, by pipeline; returns whether it did not refuse the same before."""
        known = self._by_name.get(name)
        refusals = tuple(
            f"{name} does not take the order for {pipeline}: {error}"[:_MAX_TROUBLE]
            for pipeline, error in list(errors.items())[:_MAX_REFUSALS]
        )
        if known is None or known.refusals == refusals:
            return False
        self._by_name[name] = replace(known, refusals=refusals)
        return True

    def measured(self, name: str, link: MeasuredLink) -> None:
        """The best of its addresses was measured."""
        if (known := self._by_name.get(name)) is not None:
            self._by_name[name] = replace(known, link=link, addresses=_merged((link.address,), known.addresses))

    def part(self, names: Iterable[str]) -> list[str]:
        """Machines have left the cluster for good; returns the names of which that was not known."""
        new = [name for name in dict.fromkeys(names) if name not in self._left and name != self._own]
        new = new[: MAX_LEFT - len(self._left)]
        self._left.update(new)
        for name in new:
            self._by_name.pop(name, None)
        return new

    @property
    def left(self) -> tuple[str, ...]:
        """Names of machines that have left."""
        return tuple(sorted(self._left))

    def _has_room(self, name: str) -> bool:
        return name != self._own and len(self._by_name) < MAX_MACHINES

    def hear(self, others: Iterable[KnownMachine], *, now: float) -> list[str]:
        """Another machine has named those it knows; returns the names that were unknown."""
        new = []
        for each in others:
            known = self._by_name.get(each.name)
            if each.name in self._left or (known is None and not self._has_room(each.name)):
                continue
            if known is None:
                new.append(each.name)
                known = Acquaintance(name=each.name, role=each.role, named_at=now)
            self._by_name[each.name] = replace(
                known,
                seen_at=max(known.seen_at, min(each.seen_at, now)),
                addresses=_merged(known.addresses, each.addresses),
            )
        return new

    def drop_hearsay(self, name: str, *, now: float) -> bool:
        """Forget a machine that others named and that was not met for a while; returns whether it was forgotten."""
        known = self._by_name.get(name)
        if known is None or known.was_met or now - known.named_at < _HEARSAY_S:
            return False
        del self._by_name[name]
        return True

    @property
    def to_remember(self) -> list[tuple[object, ...]]:
        """What is worth keeping and saying at once when it changes: where machines and their nodes are."""
        return [(each.name, each.addresses, [(node.pipeline, node.address) for node in each.nodes]) for each in self]

    @property
    def links(self) -> tuple[MeasuredLink, ...]:
        """What was measured to them."""
        return tuple(each.link for each in self if each.link is not None)

    def remarks(self, own: MachineFacts) -> tuple[str, ...]:
        """What a person should know of them: clocks and versions that differ."""
        remarks = []
        for each in self:
            difference_s = each.clock_difference_s
            if abs(difference_s) > _CLOCK_DIFFERENCE_S:
                remarks.append(
                    f"The clock of {each.name} is {abs(difference_s):.0f} s {'ahead' if difference_s > 0 else 'behind'}"
                    f" that of {own.name}: set it, or certificates will be refused."
                )
            if each.facts is not None and each.facts.shardhub != own.shardhub:
                remarks.append(f"{each.name} runs shardhub {each.facts.shardhub}, and {own.name} {own.shardhub}.")
            remarks += each.refusals
        return tuple(remarks)


def _merged(*groups: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(address for group in groups for address in group))[:MAX_ADDRESSES]
