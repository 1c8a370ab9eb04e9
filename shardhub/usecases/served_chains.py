"""Keeps a gateway's chains to those that are up: starts each that comes, and ends each that goes."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from shardhub.chain.head import Head
from shardhub.errors import ChainError, ShardhubError, UsageError
from shardhub.gateway.served_models import AbsentChain, ServedModels, is_same_model, reason_of
from shardhub.gateway.service import Service
from shardhub.usecases.chains_up import ChainSource, ChainUp
from shardhub.usecases.start_head import Starting
from shardhub.usecases.watcher import About, Watcher

log = logging.getLogger(__name__)

# Seconds between attempts to start a chain while nodes are missing, and after other errors, such as the Hub's.
_BETWEEN_STARTS_S = 2.0
_AFTER_ERRORS_S = 10.0
# Once a model is served, how long the start waits for the first attempts of the other chains.
_OTHERS_S = 10.0


@dataclass(slots=True, kw_only=True)
class _Chain:
    """A chain that is served, or is to be.

    Attributes:
        up: What the source says of it.
        is_tried: Whether an attempt to start it has ended.
        gone: Set once it is up no longer.
    """

    up: ChainUp
    is_tried: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def addresses(self) -> Sequence[str]:
        """Addresses of its nodes at this moment."""
        nodes = self.up.head.nodes
        return [nodes] if isinstance(nodes, str) else nodes


class ServedChains:
    """Starts and ends the chains of a gateway as a source names them. Runs on one event loop.

    Args:
        models: Where the chains are served.
        source: Tells which chains are up.
        watcher: Notified of the current activity, and of nodes that come and go.
        missing: Called when another chain is waited for, or the same for another reason.
    """

    def __init__(
        self, models: ServedModels, source: ChainSource, watcher: Watcher, *, missing: Callable[[], None] = lambda: None
    ) -> None:
        self._models = models
        self._source = source
        self._watcher = watcher
        self._missing = missing
        self._chains: dict[str, _Chain] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._starting: dict[str, Starting] = {}
        self._orders = itertools.count()
        self._news = asyncio.Event()
        self._has_started = False
        self._failure: BaseException | None = None
        self._following: asyncio.Task[None] | None = None

    def prepare(self, chains: Sequence[ChainUp]) -> None:
        """Read the pipelines of chains that are named at the start, before the loop runs them.

        Raises:
            UsageError: Chains of several models have the same names for clients.
            ShardhubError: A pipeline cannot be read, or must not be used.
        """
        several = len(chains) > 1
        for up in chains:
            self._starting[up.name] = Starting(up.head, self._watcher_of(up, named=several))
        manifests = [starting.pipeline.manifest for starting in self._starting.values()]
        if chains[0].model_names and not all(is_same_model(manifests[0], other) for other in manifests[1:]):
            raise UsageError(
                f"`model_names` gives one name to {len(manifests)} pipelines.",
                why="They are of different models, and clients choose a model by its name.",
                hint="Leave it out, so that each model has its pipeline's name, or give `*`, which takes any name.",
            )

    async def start(self) -> None:
        """Begin to follow the source, and wait until a model is served and the other chains were tried once.

        Raises:
            ShardhubError: A chain can never be started, and the source is strict.
        """
        self._following = asyncio.create_task(self._follow())
        deadline: float | None = None
        loop = asyncio.get_running_loop()
        while self._failure is None:
            if self._models.services:
                deadline = deadline or loop.time() + _OTHERS_S
                if all(chain.is_tried for chain in self._chains.values()) or loop.time() >= deadline:
                    break
            self._news.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._news.wait()
            except TimeoutError:
                break
        if self._failure is not None:
            raise self._failure
        self._has_started = True

    async def stop(self) -> None:
        """End all chains. The gateway has ended before."""
        tasks = [self._following, *(chain.task for chain in self._chains.values()), *self._leaving]
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _follow(self) -> None:
        async for chains in self._source.changes():
            self._take(chains)
            self._news.set()

    def _take(self, chains: Sequence[ChainUp]) -> None:
        """Start the chains that have come, and end those that have gone."""
        named = {up.name: up for up in chains}
        self._models.machine_names = {address: name for up in chains for address, name in up.machines.items()}
        for name, chain in list(self._chains.items()):
            if name in named and _is_same(chain.up, named[name]):
                chain.up = named[name]
            else:
                self._end(self._chains.pop(name))
        if not named:
            self._watcher.note("nothing is up, so requests are answered with 503; bring a model up: shardhub up MODEL")
            self._missing()
        for name, up in named.items():
            if name not in self._chains:
                chain = self._chains[name] = _Chain(up=up)
                chain.task = asyncio.create_task(self._serve(chain, next(self._orders), several=len(named) > 1))
                chain.task.add_done_callback(self._check)

    def _end(self, chain: _Chain) -> None:
        """Let a chain end once its answers are complete; one that is not served yet ends at once."""
        assert chain.task is not None
        self._leaving.add(chain.task)
        chain.task.add_done_callback(self._leaving.discard)
        chain.gone.set()

    async def _serve(self, chain: _Chain, order: int, *, several: bool) -> None:
        """Serve a chain until it is gone."""
        watcher = self._watcher_of(chain.up, named=several)
        starting = asyncio.ensure_future(self._started(chain, watcher))
        gone = asyncio.ensure_future(chain.gone.wait())
        try:
            await asyncio.wait({starting, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._models.absent.pop(chain.up.name, None)
            gone.cancel()
            if not starting.done():
                starting.cancel()
                await asyncio.wait({starting})
        if starting.cancelled() or (head := starting.result()) is None:
            return
        try:
            up = chain.up
            service = await Service.start(head, self._models.settings, names=up.model_names, chain=up.name, order=order)
            try:
                self._models.add(service)
                chain.is_tried = True
                self._news.set()
                await chain.gone.wait()
                await self._models.remove(service)
                watcher.note("it is served no longer: its last answer has ended")
            finally:
                service.close()
        finally:
            await head.stop()
            await asyncio.to_thread(head.tokenizer.close)

    async def _started(self, chain: _Chain, watcher: Watcher) -> Head | None:
        """Start a chain, again while nodes are missing; None if it can never be started."""
        starting: Starting | None = self._starting.pop(chain.up.name, None)
        reported = ""
        while True:
            try:
                if starting is None:
                    named = chain.addresses if chain.up.follows else None
                    starting = await asyncio.to_thread(
                        Starting, chain.up.head, watcher, named=named, security=chain.up.security
                    )
                return await starting.start()
            except ShardhubError as error:
                is_passing = isinstance(error, ChainError) and (starting is None or starting.names_nodes)
                if self._source.is_strict and not is_passing:
                    self._fail(error, watcher)
                    return None
                reason = reason_of(error)
                name = chain.up.name if starting is None else starting.pipeline.manifest.name
                name = next(iter(chain.up.model_names), name)
            self._models.absent[chain.up.name] = AbsentChain(name=name, reason=reason)
            chain.is_tried = True
            self._news.set()
            self._missing()
            if reason != reported:
                reported = reason
                watcher.note(f"waiting for the chain, answering 503: {reason}")
            await asyncio.sleep(_BETWEEN_STARTS_S if is_passing else _AFTER_ERRORS_S)

    def _check(self, task: asyncio.Task[None]) -> None:
        """Report an error that is a fault of this program: at the start as an error, later in the log."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._has_started:
            log.error("a chain failed", exc_info=error)
        else:
            self._failure = error
        self._news.set()

    def _fail(self, error: ShardhubError, watcher: Watcher) -> None:
        """A chain that was named can never be started: it is an error at the start, and left out later."""
        if self._has_started:
            watcher.note(f"warning: it cannot be served: {error}")
        else:
            self._failure = error
        self._news.set()

    def _watcher_of(self, up: ChainUp, *, named: bool) -> Watcher:
        """The watcher for one chain; where there are several, each line says which it is about."""
        return About(self._watcher, str(up.head.pipeline).rstrip("/").rpartition("/")[2]) if named else self._watcher


def _is_same(one: ChainUp, other: ChainUp) -> bool:
    """Whether two descriptions are of the same chain, whose nodes may have changed."""
    if not other.follows:
        return one == other
    return _without_nodes(one) == _without_nodes(other)


def _without_nodes(up: ChainUp) -> ChainUp:
    return replace(up, head=replace(up.head, nodes=()), security=None, machines={})
