"""Telling the nodes of a chain of each other, so that they hand each other weight files."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from shardhub.address import Address, ip_of
from shardhub.chain.chain import Chain
from shardhub.chain.stage_link import RemoteLink, is_remote
from shardhub.errors import ShardhubError
from shardhub.limits import MAX_NODES_KEPT

log = logging.getLogger(__name__)

# Between two looks for nodes that have come.
_LOOK_S = 10.0


async def introduce_nodes(chain: Chain) -> None:
    """Tell each node of a chain where the others are, and again when that changes, until cancelled."""
    known: dict[tuple[str, bytes], Sequence[str]] = {}
    while True:
        links = [place.link for place in chain.places if place.is_there and is_remote(place.link)]
        for link in links:
            key, others = (link.name, link.description.boot_id), others_of(link, links)
            if not others or known.get(key) == others:
                continue
            try:
                await link.introduce(others)
                known[key] = others
            except ShardhubError as error:
                log.info("%s was not told of other nodes: %s", link.name, error)
        await chain.clock.sleep(_LOOK_S)


def others_of(link: RemoteLink, links: Sequence[RemoteLink]) -> list[str]:
    """Addresses of the other nodes, at most `MAX_NODES_KEPT`: as the head knows them, and as they call themselves.

    Loopback addresses are for nodes that the head reaches on its own machine.
    """
    is_here = _is_loopback(link.name)
    addresses = dict.fromkeys(
        address
        for other in links
        if other is not link
        for address in (other.name, *other.description.advertise)
        if is_here or not _is_loopback(address)
    )
    return list(addresses)[:MAX_NODES_KEPT]


def _is_loopback(address: str) -> bool:
    host = Address.parse(address).host
    try:
        return ip_of(host).is_loopback
    except ValueError:
        return host == "localhost"
