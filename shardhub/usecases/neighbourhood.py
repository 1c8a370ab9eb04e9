"""A process's part in the exchange of weight files within its cluster: whom it asks, what it shares, what it learns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shardhub.address import Address
from shardhub.errors import ShardhubError, UsageError
from shardhub.hub.cache import Cache
from shardhub.hub.claims import Claims
from shardhub.hub.known_nodes import KnownNodes, well_formed
from shardhub.hub.neighbours import Neighbours
from shardhub.hub.traffic import Traffic
from shardhub.node.file_servicer import Sharing
from shardhub.node.peers import DEFAULT_PEERS, Network
from shardhub.security.trust import Security
from shardhub.usecases.addresses import neighbour_addresses
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.neighbours import AskedNeighbours
from shardhub.usecases.watcher import Watcher

log = logging.getLogger(__name__)


class Neighbourhood:
    """A node's part; it lasts over all revisions that the node serves.

    Args:
        cache_dir: The cache's folder; None takes the user's.
        watcher: Notified of neighbours that give nothing.

    Attributes:
        cache: Whose weight files are shared.
        traffic: Counts of weight bytes.
    """

    def __init__(self, cache_dir: str | Path | None, watcher: Watcher) -> None:
        self.cache = Cache(cache_dir)
        self.traffic = Traffic()
        self._claims = Claims()
        self._known = KnownNodes(self.cache)
        self._watcher = watcher
        self._asked: AskedNeighbours | None = None

    def sharing(self, *, is_shared: bool, bytes_per_s: int) -> Sharing:
        """What the node hands to others, at which rate, and what it does with their addresses."""
        return Sharing(
            cache=self.cache if is_shared else None,
            bytes_per_s=bytes_per_s,
            claims=self._claims,
            traffic=self.traffic,
            on_asked=self._meet,
            on_introduced=self._introduced,
        )

    def ask(
        self,
        named: Callable[[], Sequence[str]],
        *,
        loop: LoopThread,
        security: Security,
        allowed: Sequence[Network] = DEFAULT_PEERS,
        announce: Callable[[], int],
    ) -> AskedNeighbours:
        """Make the neighbours of a fetch; arguments as for `AskedNeighbours`."""
        self._asked = AskedNeighbours(
            named,
            known=self._known.read,
            allowed=allowed,
            loop=loop,
            notice=self._watcher.note,
            security=security,
            claims=self._claims,
            announce=announce,
        )
        return self._asked

    def _meet(self, address: str, *, is_calling: bool = True) -> None:
        if self._asked is not None:
            self._asked.meet(address, is_calling=is_calling)

    def _introduced(self, addresses: Sequence[str]) -> None:
        for address in well_formed(addresses):
            self._meet(address, is_calling=False)
        try:
            self._known.add(addresses)
        except ShardhubError as error:
            log.info("addresses of other nodes are not kept: %s", error)


@contextmanager
def asked_neighbours(
    named: Callable[[], Sequence[str]], *, cache: Cache, security: Security, watcher: Watcher
) -> Iterator[Neighbours]:
    """Neighbours of a command that shares nothing.

    Args:
        named: Returns the addresses that people named.
        cache: Where learned addresses are kept.
        security: How neighbours are reached.
        watcher: Notified of neighbours that give nothing.
    """
    known = KnownNodes(cache).read
    with (
        LoopThread() as loop,
        AskedNeighbours(named, known=known, loop=loop, notice=watcher.note, security=security) as asked,
    ):
        yield asked


def named_neighbours(
    options: Sequence[str] | str, watcher: Watcher, *, own: Address | None = None
) -> Callable[[], Sequence[str]]:
    """Addresses of neighbours: given ones are checked at once, nodes.toml is read when files are needed.

    Args:
        options: The given ones.
        watcher: Warned if nodes.toml cannot be read.
        own: Where this node listens.

    Raises:
        UsageError: A given one is malformed.
    """
    given = [options] if isinstance(options, str) else list(options)
    only_given = neighbour_addresses(given, own=own, has_others=False)

    def read() -> Sequence[str]:
        try:
            return neighbour_addresses(given, own=own)
        except UsageError as error:
            watcher.note(f"warning: the nodes listed there are not asked for weight files: {error}")
            return only_given

    return read
