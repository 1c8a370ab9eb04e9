"""The metadata of repos' cards, read once."""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from shardhub.localhub.card import CardError, front_matter
from shardhub.localhub.history import Outline
from shardhub.localhub.store import BlobStore

log = logging.getLogger(__name__)

# Largest card that is read to describe its repo, and number of parsed cards that are cached, a few KB each.
_MAX_CARD_BYTES = 1 << 20
_MAX_CARDS = 1024
# The client passes a card's fields to a function as keywords; these are that function's own names, and would break a
# whole listing.
_NO_FIELDS = ("self", "ignore_metadata_errors")


def metadata_of(store: BlobStore, commit: Outline) -> dict[str, Any]:
    """The metadata of a commit's card; empty if there is none, or it is unusable."""
    card = commit.card
    if card is None or card.size_bytes > _MAX_CARD_BYTES:
        return {}
    try:
        metadata: dict[str, Any] = json.loads(_card_json(store.path(card.sha256)))
    except FileNotFoundError:  # a lost blob affects its own repo only, not the whole list
        log.error("%s is missing: restore it from a backup", store.path(card.sha256))
        return {}
    return metadata


@lru_cache(maxsize=_MAX_CARDS)
def _card_json(blob: Path) -> str:
    """A card's metadata as JSON text, empty if it is unusable; cacheable because a blob never changes."""
    try:
        fields = front_matter(blob.read_text("utf-8", errors="replace"))
    except CardError:
        return "{}"
    if not isinstance(fields.get("tags"), (list, str, type(None))):
        del fields["tags"]  # the client iterates over this field
    return json.dumps({name: value for name, value in fields.items() if name not in _NO_FIELDS})
