"""The status of a pipeline's nodes, read again and again: who serves each stage, and what limits the chain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from shardhub.chain.chain_status import ChainStatus, Reading, chain_status, read_nodes
from shardhub.chain.links import NodeDialer
from shardhub.parity import inexactness
from shardhub.setting_checks import check_settings
from shardhub.shard import Pipeline, read_pipeline
from shardhub.usecases.addresses import node_addresses
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.parity import warn_inexact
from shardhub.usecases.places import Places
from shardhub.usecases.served import ServedNodes, served_nodes
from shardhub.usecases.trust import head_security
from shardhub.usecases.watcher import SILENT, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSettings:
    """The nodes whose status is read.

    Attributes:
        pipeline: Its folder or Hub id.
        nodes: Addresses of nodes, in any order, or one of them; if empty, SHARDHUB_NODES or nodes.toml name them.
        interval_s: Seconds between readings.
        tls: Folder of this machine's certificates, for loopback too.
        insecure_lan: Reach nodes on other machines without TLS.
        cache_dir: The cache's folder; None takes the user's.
    """

    pipeline: str | Path
    nodes: tuple[str, ...] | str = ()
    interval_s: float = 1.0
    tls: str | Path | None = None
    insecure_lan: bool = False
    cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        check_settings(self, interval_s=(0, None))


class LiveStatus:
    """The status of a chain, without end: iterate with `for`, or with `async for`. It is made by `live_status`.

    The first status comes at once; each later one has the rates since the one before.
    """

    def __init__(self, settings: StatusSettings, watcher: Watcher) -> None:
        self._settings = settings
        self._watcher = watcher

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline, fetched first if it is a repo."""
        places = Places(self._settings.cache_dir, watcher=self._watcher)
        pipeline = read_pipeline(places.pipeline_folder(self._settings.pipeline))
        warn_inexact(inexactness(pipeline.folder, pipeline.manifest), self._watcher)
        return pipeline

    def __iter__(self) -> Generator[ChainStatus, None, None]:
        before: tuple[Reading, ...] = ()
        with LoopThread() as loop:
            while True:
                now = loop.wait(read_nodes(self.pipeline.manifest, self._addresses, dialer=self._dialer))
                yield chain_status(self.pipeline.manifest, now, before)
                before = now
                time.sleep(self._settings.interval_s)

    async def __aiter__(self) -> AsyncGenerator[ChainStatus, None]:
        before: tuple[Reading, ...] = ()
        await asyncio.to_thread(lambda: (self.pipeline, self._addresses, self._dialer))
        while True:
            addresses = await asyncio.to_thread(lambda: self._addresses)
            now = await read_nodes(self.pipeline.manifest, addresses, dialer=self._dialer)
            yield chain_status(self.pipeline.manifest, now, before)
            before = now
            await asyncio.sleep(self._settings.interval_s)

    def read(self) -> ChainStatus:
        """Read the status once; nodes that report a load are read twice, as rates need two readings."""
        with closing(iter(self)) as statuses:
            status = next(statuses)
            return next(statuses) if any(node.reading.load for node in status.nodes) else status

    @property
    def _addresses(self) -> list[str]:
        served = self._served
        return list(served.addresses()) if served is not None else node_addresses(self._settings.nodes, self.pipeline)

    @cached_property
    def _served(self) -> ServedNodes | None:
        """The nodes of this machine's cluster, if none are named."""
        settings = self._settings
        if settings.insecure_lan or node_addresses(settings.nodes, self.pipeline):
            return None
        return served_nodes(self.pipeline.manifest.pipeline_id, settings.tls)

    @cached_property
    def _dialer(self) -> NodeDialer:
        settings = self._settings
        if self._served is not None:
            return NodeDialer(security=self._served.security)
        security = head_security(settings.tls, insecure_lan=settings.insecure_lan, watcher=self._watcher)
        return NodeDialer(security=security)


def live_status(settings: StatusSettings | str | Path, watcher: Watcher = SILENT) -> LiveStatus:
    """Read who serves each stage of a pipeline, its load, and what limits the chain.

    Args:
        settings: The pipeline and its nodes, or only the pipeline's folder or Hub id.
        watcher: Notified of the current activity.

    Returns:
        An iterable of `ChainStatus`; a node that does not answer is a part of it, and raises nothing.

    Raises:
        UsageError: An address is malformed.
        CertificateRefused, IdentityError: This machine's certificates cannot be used.
        NotFound, AccessError, HubUnreachable: The pipeline cannot be fetched.
    """
    return LiveStatus(settings if isinstance(settings, StatusSettings) else StatusSettings(pipeline=settings), watcher)
