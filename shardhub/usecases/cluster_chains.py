"""The chains of a gateway that serves what is up in this machine's cluster."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

from shardhub.errors import NodeUnreachable, ShardhubError
from shardhub.usecases.chains_up import ChainUp
from shardhub.usecases.cluster import ClusterSettings, open_cluster
from shardhub.usecases.cluster_place import ClusterPlace, own_resident
from shardhub.usecases.cluster_view import ServedPipeline, pipelines_of
from shardhub.usecases.served import none_given, place_of
from shardhub.usecases.start_head import HeadSettings

log = logging.getLogger(__name__)

# Seconds until a resident that has ended is asked again.
_AGAIN_S = 2.0
# Of a pipeline's id, as much as tells versions apart.
_ID_CHARS = 8


class ClusterChains:
    """Tells which pipelines are up in the cluster, each as one chain over all its nodes.

    While this machine's resident does not answer, what it said last counts.

    Args:
        head: How each chain is run; pipeline and nodes are filled in.
        place: The folders of this machine's state and certificates.

    Raises:
        UsageError: No resident runs on this machine.
        ShardhubError: It cannot be asked.
    """

    is_strict = False

    def __init__(self, head: HeadSettings, place: ClusterPlace) -> None:
        self._head = replace(head, allow_local=False)  # `up` has decided where stages run
        self._place = place
        self._settings = ClusterSettings(place=place)
        try:
            self._security = own_resident(place).security
            with open_cluster(self._settings) as cluster:
                self._last = self._chains(cluster.pipelines())
        except NodeUnreachable as error:
            raise none_given(error, "shardhub gateway ORG/MODEL-pipeline") from error

    async def changes(self) -> AsyncGenerator[Sequence[ChainUp], None]:
        """Yield all pipelines that are up, at once and after each change."""
        loop = asyncio.get_running_loop()
        chains: asyncio.Queue[Sequence[ChainUp]] = asyncio.Queue()
        is_over = threading.Event()

        def deliver(current: Sequence[ChainUp]) -> None:
            if not is_over.is_set():
                loop.call_soon_threadsafe(chains.put_nowait, current)

        watching = asyncio.create_task(asyncio.to_thread(self._watch, deliver, is_over))
        try:
            yield self._last
            while True:
                yield await chains.get()
        finally:
            is_over.set()
            await asyncio.wait({watching})

    def _watch(self, deliver: Callable[[Sequence[ChainUp]], None], is_over: threading.Event) -> None:
        """Deliver what is up whenever that changes, until it is over."""
        while not is_over.is_set():
            try:
                with open_cluster(self._settings) as cluster:
                    for machines in cluster.watch(is_over.is_set):
                        chains = self._chains(pipelines_of(machines))
                        if chains != self._last:
                            self._last = chains
                            deliver(chains)
            except ShardhubError as error:
                log.info("what is up is not known for now: %s", error)
            is_over.wait(_AGAIN_S)

    def _chains(self, pipelines: Sequence[ServedPipeline]) -> tuple[ChainUp, ...]:
        return tuple(
            ChainUp(
                # Another version of a pipeline is another chain, and metrics of both are read while one ends.
                name=f"{served.name}@{(served.deployment.pipeline_id or '')[:_ID_CHARS]}",
                head=replace(self._head, pipeline=place_of(served, self._place), nodes=served.addresses),
                model_names=(served.name,),
                security=self._security,
                machines={node.address: node.machine for node in served.nodes if node.address is not None},
            )
            for served in pipelines
        )
