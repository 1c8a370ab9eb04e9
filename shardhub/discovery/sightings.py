"""The machines of this cluster that were announced lately, in bounded memory, whoever announces how much."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping

from shardhub.discovery.announcement import MAX_ADDRESSES, Announcement

# More machines than a cluster has.
MAX_MACHINES = 256
# Clusters of others, for a word to a person whose machines do not find each other.
_MAX_OTHER_CLUSTERS = 8
# Announcements are repeated within 75 minutes. Source: RFC 6762, section 10.
LIFE_S = 5400.0


class Sightings:
    """Addresses at which machines of one cluster were announced.

    An announcement proves nothing. One with a member's name and another machine's addresses stands beside the
    member's own, so that whoever dials them all reaches the member. Names that are not members' give way first.

    Args:
        fingerprint: Of the cluster's authority.
        own_name: This machine's name, which is left out.
        members: Returns the names of the members that are known.
        clock: Seconds on a monotonic clock.
    """

    def __init__(
        self,
        fingerprint: str,
        own_name: str,
        *,
        members: Callable[[], Collection[str]] = frozenset,
        clock: Callable[[], float],
    ) -> None:
        self._fingerprint, self._own_name = fingerprint, own_name
        self._members = members
        self._clock = clock
        # By name, the one last announced at the end: its addresses, and when each was announced last.
        self._seen: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._others: OrderedDict[str, None] = OrderedDict()

    def add(self, announcement: Announcement) -> bool:
        """Take in an announcement; returns whether it has an address that was not known."""
        if announcement.fingerprint != self._fingerprint:
            self._others[announcement.fingerprint] = None
            self._others.move_to_end(announcement.fingerprint)
            if len(self._others) > _MAX_OTHER_CLUSTERS:
                self._others.popitem(last=False)
            return False
        if announcement.name == self._own_name:
            return False
        seen = self._seen.setdefault(announcement.name, {})
        self._seen.move_to_end(announcement.name)
        is_new = not seen.keys() >= set(announcement.addresses)
        now = self._clock()
        for address in announcement.addresses:
            seen.pop(address, None)
            seen[address] = now
        while len(seen) > MAX_ADDRESSES:
            del seen[next(iter(seen))]
        if len(self._seen) > MAX_MACHINES:
            self._drop_one()
        return is_new

    def remove(self, name: str) -> None:
        """Forget a machine that says it is gone."""
        self._seen.pop(name, None)

    def addresses(self) -> Mapping[str, tuple[str, ...]]:
        """HOST:PORT by name of all that were announced lately, the latest first."""
        oldest = self._clock() - LIFE_S
        fresh = {
            name: tuple(address for address, at in reversed(seen.items()) if at > oldest)
            for name, seen in self._seen.items()
        }
        return {name: addresses for name, addresses in fresh.items() if addresses}

    @property
    def other_clusters(self) -> tuple[str, ...]:
        """Fingerprints of other clusters in this network, a few of them."""
        return tuple(self._others)

    def _drop_one(self) -> None:
        members = self._members()
        stranger = next((name for name in self._seen if name not in members), None)
        del self._seen[stranger if stranger is not None else next(iter(self._seen))]
