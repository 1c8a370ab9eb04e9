"""The shards of a node, fetched from its neighbours and the Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.address import Address
from shardhub.security.trust import Security
from shardhub.shard import Shard, check_adjacent
from shardhub.usecases.addresses import networks
from shardhub.usecases.choose_shards import choose_shards
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.neighbourhood import Neighbourhood, named_neighbours
from shardhub.usecases.other_version import note_newer_version
from shardhub.usecases.places import Places
from shardhub.usecases.sizes import parse_memory
from shardhub.usecases.watcher import Watcher

if TYPE_CHECKING:
    from shardhub.usecases.serve import ServeSettings


def fetch_shards(
    named: Sequence[str | Path],
    settings: ServeSettings,
    *,
    exchange: Neighbourhood,
    own: Address,
    loop: LoopThread,
    security: Security,
    announce: Callable[[], int],
    watcher: Watcher,
) -> list[Shard]:
    """Fetch the shards that a node serves as one stage, from neighbours first, and check them.

    A node that takes no newer revisions notes that there is one.

    Args:
        named: Shards, or a pipeline.
        exchange: The node's part in the exchange of weight files.
        own: Where the node listens, or will.
        announce: Returns the port at which this process hands out files; called if the settings let it.

    Raises:
        ShardhubError: As `choose_shards`.
    """
    asked = exchange.ask(
        named_neighbours(settings.neighbours, watcher, own=own),
        loop=loop,
        security=security,
        allowed=networks(settings.peers),
        announce=lambda: announce() if settings.share else 0,
    )
    with asked as neighbours:
        places = Places(
            settings.cache_dir,
            settings.cache_limit,
            watcher=watcher,
            neighbours=neighbours,
            traffic=exchange.traffic,
        )
        budget = parse_memory(settings.memory)
        shards = check_adjacent(
            choose_shards(places, named, settings.stages, budget, settings.require_signature, watcher=watcher)
        )
    if not settings.follow:
        note_newer_version(named, shards, places, watcher)
    return shards
