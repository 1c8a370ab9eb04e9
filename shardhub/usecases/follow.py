"""Following a shard's repo: a node that is replaced by one of the newest revision once its sessions have ended."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from shardhub.address import Address
from shardhub.errors import ShardhubError, UsageError
from shardhub.hub.reference import Reference, parse_reference
from shardhub.shard import Shard
from shardhub.usecases.block import Block
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.neighbourhood import Neighbourhood
from shardhub.usecases.places import Places
from shardhub.usecases.serve import Node, ServeSettings, Serving
from shardhub.usecases.served_shards import fetch_shards
from shardhub.usecases.watcher import Watcher

# Share by which each wait differs, so that the nodes of a pipeline do not ask the Hub at once.
_JITTER = 0.2
# Longest wait for sessions before the node is replaced: an answer takes minutes.
_DRAIN_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """What is served now.

    Attributes:
        names: Repos at their commits.
        serving, node: The node.
    """

    names: tuple[str, ...]
    serving: Serving
    node: Node

    @property
    def digests(self) -> list[str]:
        """Stage digests of its shards."""
        return [shard.digest for shard in self.node.facts.shards]


class Following(Block[Node]):
    """A node that takes new revisions of what it serves, as a context manager; see `serve`.

    A new revision is fetched beside the old one, whole and checked, while the old one is served. Then the node takes no
    new sessions, waits for its own to end, and starts again at the same address with the new revision. If that cannot
    be loaded, the old one is served again, and the revision is not tried a second time.
    """

    def __init__(
        self, named: Sequence[str | Path], settings: ServeSettings, watcher: Watcher, end: Callable[[int], None]
    ) -> None:
        super().__init__()
        self._settings = settings
        self._watcher = watcher
        self._end = end
        self._references = [_followed(text) for text in named]
        self._asking = Places(settings.cache_dir)  # silent: it asks for as long as the node runs
        self._neighbourhood = Neighbourhood(settings.cache_dir, watcher)
        self._is_asked = threading.Event()
        self._serving: Serving | None = None
        self._refused: set[tuple[str, ...]] = set()
        self._failure = ""

    def ask_to_stop(self, number: int = 15) -> bool:
        """As `Serving.ask_to_stop`."""
        self._is_asked.set()
        serving = self._serving
        return serving is not None and serving.ask_to_stop(number)

    def _start(self, stack: ExitStack) -> Node:
        self._is_asked.clear()
        served = self._serve(self._resolve(), self._settings)
        self._loop = stack.enter_context(LoopThread())
        pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="shardhub-follow"))
        shown: Future[Node] = Future()
        running = pool.submit(self._run, served, shown)
        stack.callback(self.ask_to_stop)
        node = Node(served.node.facts, running, self.ask_to_stop)
        shown.set_result(node)
        return node

    def _run(self, served: _Served, shown: Future[Node]) -> int:
        """Serve until the node is asked to stop or fails, and replace it by each newer revision.

        Args:
            served: What is served first.
            shown: The node that the caller sees.
        """
        while not served.node.has_ended(within_s=self._settings.follow_interval_s * _jitter()):
            if (newer := self._newer(served)) is not None and not self._is_asked.is_set():
                served = self._replace(served, newer)
                shown.result().facts = served.node.facts
        code = served.node.wait()
        served.serving.__exit__(None, None, None)
        return code

    def _newer(self, served: _Served) -> tuple[str, ...] | None:
        """Fetch a newer revision, if there is one with other stages; returns its repos and commits."""
        try:
            names = self._resolve()
            if names == served.names or names in self._refused:
                return None
            shards = self._fetch(names, served)
        except ShardhubError as error:
            if str(error) != self._failure:  # once, however often it is met
                self._watcher.note(f"warning: cannot follow {self._named}, which goes on as it is: {error}")
            self._failure = str(error)
            return None
        self._failure = ""
        return names if [shard.digest for shard in shards] != served.digests else None

    def _fetch(self, names: tuple[str, ...], served: _Served) -> list[Shard]:
        """Fetch the shards of a newer revision, and check them.

        Raises:
            ShardhubError: As `choose_shards`.
        """
        own = Address.parse(served.node.address)
        return fetch_shards(
            names,
            self._settings,
            exchange=self._neighbourhood,
            own=own,
            loop=self._loop,
            security=served.serving.security,
            announce=lambda: own.port,
            watcher=self._watcher,
        )

    def _replace(self, served: _Served, newer: tuple[str, ...]) -> _Served:
        """Serve a newer revision in place of the one that is served, or that one again if the newer cannot be loaded.

        Raises:
            ShardhubError: Neither can be served.
        """
        self._watcher.note(f"{', '.join(newer)} is here; it is served once the present sessions have ended")
        served.serving.retire(_DRAIN_S)
        if served.node.wait() != 0 or self._is_asked.is_set():
            return served
        served.serving.__exit__(None, None, None)
        address = Address.parse(served.node.address)
        settings = replace(self._settings, port=address.port)
        try:
            replaced = self._serve(newer, settings)
            self._watcher.note(f"now serving {', '.join(newer)} at {replaced.node.address}")
        except ShardhubError as error:
            self._refused.add(newer)
            self._watcher.note(f"warning: {', '.join(newer)} cannot be served, so the old one is served again: {error}")
            replaced = self._serve(served.names, settings)
        return replaced

    def _serve(self, names: tuple[str, ...], settings: ServeSettings) -> _Served:
        self._serving = serving = Serving(names, settings, self._watcher, self._end, self._neighbourhood)
        node = serving.__enter__()
        if self._is_asked.is_set():  # while it was loaded
            serving.ask_to_stop()
        return _Served(names=names, serving=serving, node=node)

    def _resolve(self) -> tuple[str, ...]:
        """The followed repos at the commits that they name now."""
        return tuple(f"{one.repo}@{self._asking.fetcher.ahead(one).commit}" for one in self._references)

    @property
    def _named(self) -> str:
        return ", ".join(map(str, self._references))


def _jitter() -> float:
    return random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret


def _followed(text: str | Path) -> Reference:
    """The repo to follow.

    Raises:
        UsageError: It is a folder, or named at a commit.
    """
    place = parse_reference(text)
    if isinstance(place, Path):
        raise UsageError(f"{text} cannot be followed.", why="It is a folder.", hint="Give a repo, such as ORG/NAME.")
    if place.commit is not None:
        raise UsageError(
            f"{place} cannot be followed.", why="A commit never changes.", hint=f"Give {place.repo}, or a branch of it."
        )
    return place
