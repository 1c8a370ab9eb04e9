"""The weight files that this process fetches from a Hub, for others of the cluster that need them too."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import replace
from threading import Lock

from shardhub.protocol import Claim, claim_rank

_INSTANCE_BYTES = 16


class Claims:
    """What this process fetches, or is about to; used by several threads.

    Attributes:
        instance: Tells this process apart from all others.
    """

    def __init__(self) -> None:
        self.instance = secrets.token_bytes(_INSTANCE_BYTES)
        self._claims: dict[str, Claim] = {}
        self._lock = Lock()

    def rank(self, sha256: str) -> bytes:
        """This process's rank for a file."""
        return claim_rank(self.instance, sha256)

    def claim(self, sha256: str) -> None:
        """State the wish to fetch a file."""
        with self._lock:
            self._claims[sha256] = Claim(sha256=sha256, done_bytes=0, begun=False)

    def begin(self, sha256: str) -> None:
        """State that the fetch of a file has begun."""
        with self._lock:
            done_bytes = self._claims[sha256].done_bytes if sha256 in self._claims else 0
            self._claims[sha256] = Claim(sha256=sha256, done_bytes=done_bytes, begun=True)

    def count(self, sha256: str, num_bytes: int) -> None:
        """Count bytes of a file as they come; negative if they had to be discarded."""
        with self._lock:
            if (claim := self._claims.get(sha256)) is not None:
                self._claims[sha256] = replace(claim, done_bytes=max(0, claim.done_bytes + num_bytes))

    def drop(self, sha256: str) -> None:
        """State that this process does not fetch a file, or no longer."""
        with self._lock:
            self._claims.pop(sha256, None)

    def among(self, digests: Collection[str]) -> list[Claim]:
        """The claims of these files."""
        with self._lock:
            return [self._claims[sha256] for sha256 in digests if sha256 in self._claims]
