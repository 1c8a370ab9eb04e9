"""Addresses of other nodes that heads have told this machine of, kept for the next start."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from shardhub.address import Address
from shardhub.errors import AddressError
from shardhub.hub.cache import Cache
from shardhub.limits import MAX_NODES_KEPT
from shardhub.regular_files import read_file

_FILE = "nodes.json"
_MAX_BYTES = 1 << 16


class KnownNodes:
    """The addresses, newest first; they are asked for weight files by sha256, and trusted for nothing else.

    Args:
        cache: In whose folder they are kept.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._path: Path = cache.root / _FILE

    def read(self) -> list[str]:
        """The addresses; none if the file is missing, or was not written by `add`."""
        try:
            addresses = json.loads(read_file(self._path, _MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return []
        return well_formed(addresses if isinstance(addresses, list) else [])

    def add(self, addresses: Sequence[str]) -> None:
        """Put addresses before those that are known, and forget the oldest beyond `MAX_NODES_KEPT`."""
        known = self.read()
        kept = list(dict.fromkeys([*well_formed(addresses), *known]))[:MAX_NODES_KEPT]
        if set(kept) != set(known):
            self._cache.write(self._path, json.dumps(kept).encode())


def well_formed(texts: Sequence[object]) -> list[str]:
    """Those of these texts that are HOST:PORT, at most `MAX_NODES_KEPT`."""
    addresses = []
    for text in texts[:MAX_NODES_KEPT]:
        with suppress(AddressError):
            addresses.append(str(Address.parse(text if isinstance(text, str) else "")))
    return addresses
