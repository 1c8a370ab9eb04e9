"""What is up: the chains that a gateway serves, from a source that tells of changes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shardhub.errors import UsageError
from shardhub.security.trust import Security
from shardhub.usecases.start_head import HeadSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainUp:
    """A chain that is up.

    Attributes:
        name: Tells the chain from all others, for as long as it is up; metrics carry it.
        head: Its pipeline and nodes.
        model_names: The model's names for clients; empty is the pipeline's own.
        follows: Whether `head.nodes`, each HOST:PORT, may change while the chain is up: nodes named later join it.
        security: How its nodes are reached; None leaves it to the settings of `head`.
        machines: Names of the machines that its nodes run on, by the nodes' addresses, as far as they are known.
    """

    name: str
    head: HeadSettings
    model_names: tuple[str, ...] = ()
    follows: bool = True
    security: Security | None = None
    machines: Mapping[str, str] = field(default_factory=dict)


class ChainSource(Protocol):
    """Tells which chains are up."""

    @property
    def is_strict(self) -> bool:
        """Whether a chain of the first list that can never be started is an error; otherwise it is tried again."""

    def changes(self) -> AsyncGenerator[Sequence[ChainUp], None]:
        """Yield all chains that are up, at once and after each change, in the order in which models are listed."""


class NamedChains:
    """Chains that a person or a program names, each by its pipeline and nodes. Thread-safe.

    Args:
        heads: Their pipelines and nodes.
        model_names: Names of the model for clients.

    Attributes:
        chains: The chains that are named now.

    Raises:
        UsageError: A chain is named twice.
    """

    is_strict = True

    def __init__(self, heads: Sequence[HeadSettings], *, model_names: Sequence[str] = ()) -> None:
        self._model_names = tuple(model_names)
        self._numbers = itertools.count()
        self._watching: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self.chains: tuple[ChainUp, ...] = ()
        self.set(heads)

    def set(self, heads: Sequence[HeadSettings]) -> None:
        """Name other chains. Those with the same settings as before are the same chains.

        Raises:
            UsageError: A chain is named twice.
        """
        if len(set(heads)) < len(heads):
            twice = next(head for head in heads if heads.count(head) > 1)
            raise UsageError(
                f"{twice.pipeline} is given twice.",
                why="Both would use the same nodes, and one chain shares its requests among all of them.",
                hint="Give each pipeline once, or the nodes of each chain of its own.",
            )
        known = {chain.head: chain for chain in self.chains}
        self.chains = tuple(known.get(head) or self._chain(head) for head in heads)
        for loop, changed in self._watching:
            loop.call_soon_threadsafe(changed.set)

    async def changes(self) -> AsyncGenerator[Sequence[ChainUp], None]:
        """Yield the chains at once, and after each change."""
        changed = asyncio.Event()
        watching = (asyncio.get_running_loop(), changed)
        self._watching.append(watching)
        try:
            while True:
                yield self.chains
                await changed.wait()
                changed.clear()
        finally:
            self._watching.remove(watching)

    def _chain(self, head: HeadSettings) -> ChainUp:
        return ChainUp(name=str(next(self._numbers)), head=head, model_names=self._model_names, follows=False)
