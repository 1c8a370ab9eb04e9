"""Other machines of the cluster that may have a weight file, as a fetch sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shardhub.hub.download import Origin
from shardhub.manifest import WeightFile


class Neighbours(Protocol):
    """Those from whom a fetch takes weight files before it asks the Hub."""

    def ask(self, files: Sequence[WeightFile]) -> None:
        """Find out which of these files they have; whoever does not answer is left out."""

    def origins(self, file: WeightFile) -> Sequence[Origin]:
        """The places that can give a file, which is one of those that were asked for."""
        ...


class Nobody:
    """No neighbours."""

    def ask(self, files: Sequence[WeightFile]) -> None:
        """Do nothing."""

    def origins(self, file: WeightFile) -> Sequence[Origin]:
        """Return nothing."""
        return ()


NOBODY: Neighbours = Nobody()
