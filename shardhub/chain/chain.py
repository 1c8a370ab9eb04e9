"""The chain: live stages in order, and the steps that go round."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

import numpy as np

from shardhub.chain.credit import Credit, Deadlines
from shardhub.chain.links import Arrival, NodeLink, StageLink
from shardhub.chain.session import ChainSession
from shardhub.chain.together import all_of
from shardhub.errors import (
    SessionUnknown,
    ShardhubError,
)
from shardhub.parameters import SamplingParameters
from shardhub.protocol import (
    HopKind,
    NextHop,
    Step,
    StepFailure,
    StepResult,
    Way,
    new_id,
)
from shardhub.tensors import DTYPE_SIZES

log = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 5.0
# Leases are renewed this many times within their length.
_RENEWALS_A_LEASE = 3


class Chain:
    """A head's links to all stages. Make it with `Chain.start`.

    Attributes:
        head: This head's id.
        links: In stage order.
        hops: How each link's output goes on.
        ways: What was measured between a node and the next, by the node's place.
        max_chunk: Most ids of a row in one step, over all stages.
        max_context: Most positions of a session, over all stages.
    """

    def __init__(self, links: Sequence[StageLink]) -> None:
        self.head = new_id()
        self.links = list(links)
        self.hops: list[NextHop] = []
        self.ways: dict[int, Way] = {}
        self._sessions: dict[bytes, ChainSession] = {}
        self._lost: ShardhubError | None = None
        limits = [link.limits for link in links]
        self.max_chunk = min(limit.max_chunk for limit in limits)
        self.max_context = min(limit.max_context for limit in limits)
        self._lease_s = min(limit.lease_s for limit in limits)
        self.credit = Credit(
            steps=min(limit.queue_steps for limit in limits), size_bytes=min(limit.queue_bytes for limit in limits)
        )
        self.deadlines = Deadlines()
        self._renewing: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, links: Sequence[StageLink]) -> Chain:
        """Open all links and find how each stage reaches the next.

        Raises:
            ShardhubError: A node does not answer, or answers wrongly; all links are stopped then.
        """
        chain = cls(links)
        try:
            await all_of(
                link.start(chain.head, partial(chain._arrived, index), chain._broken)
                for index, link in enumerate(links)
            )
            chain.hops = await all_of(chain._find_hop(index) for index in range(len(links)))
        except BaseException:
            await chain.stop()
            raise
        chain._renewing = asyncio.create_task(chain._renew())
        return chain

    async def stop(self) -> None:
        """Close all sessions and links."""
        if self._renewing is not None:
            self._renewing.cancel()
        for session in list(self._sessions.values()):
            await session.close()
        for link in self.links:
            await link.stop()

    async def open(self, *, context: int, parameters: SamplingParameters) -> ChainSession:
        """Open a session on all stages; if any refuses, on none.

        Args:
            context: Positions it may grow to.
            parameters: For the last stage's draws.

        Raises:
            ContextExceeded, Overloaded: A stage has no room.
            ChainError: A node is gone.
        """
        self.check()
        session = ChainSession(self, context=context, parameters=parameters)
        self._sessions[session.id] = session
        try:
            await session.open_everywhere(position=None)
        except BaseException:
            await session.close()
            raise
        return session

    def check(self) -> None:
        """Raise what broke the chain, if anything did."""
        if self._lost is not None:
            raise self._lost

    def forget(self, session: ChainSession) -> None:
        """Take a session off the chain's books."""
        self._sessions.pop(session.id, None)

    def step_bytes(self, num_ids: int) -> int:
        """Bytes of the largest message a step of so many ids becomes."""
        return max(
            4 * num_ids
            + sum(
                DTYPE_SIZES[c.dtype] * int(np.prod(c.expected_shape(batch=1, length=num_ids, total=num_ids)))
                for c in link.facts.crossings_in
            )
            for link in self.links
        )

    async def _find_hop(self, index: int) -> NextHop:
        """How stage `index` sends on: straight to the next node where the two can reach each other, else by us."""
        if index == len(self.links) - 1:
            return NextHop(kind=HopKind.END)
        here, there = self.links[index], self.links[index + 1]
        if not isinstance(here, NodeLink) or not isinstance(there, NodeLink):
            return NextHop(kind=HopKind.OPENER)
        addresses = dict.fromkeys((*there.description.advertise, there.name))
        for address in addresses:
            try:
                self.ways[index] = await here.probe(address, there.description.boot_id, _PROBE_TIMEOUT_S)
            except ShardhubError as error:
                log.info("%s cannot reach %s: %s", here.name, address, error)
            else:
                return NextHop(kind=HopKind.DIAL, address=address)
        log.warning("%s cannot reach %s: what they exchange goes through this process", here.name, there.name)
        return NextHop(kind=HopKind.OPENER)

    def _arrived(self, index: int, arrival: Arrival) -> None:
        """Hand on what came back from stage `index`."""
        if isinstance(arrival, Step):
            try:
                self.links[index + 1].send(arrival)
            except ShardhubError as error:
                self._arrived(index, StepFailure(rows=arrival.rows, error=error))
        elif isinstance(arrival, StepResult):
            for row in arrival.rows:
                if (session := self._sessions.get(row.session)) is not None:
                    session.on_result(row)
        else:
            for failed in arrival.rows:
                if (session := self._sessions.get(failed.session)) is not None:
                    session.on_failure(failed.epoch, arrival.error)

    def _broken(self, error: ShardhubError) -> None:
        """A link broke: nothing more comes of any step that is on its way."""
        if self._lost is None:
            self._lost = error
        for session in list(self._sessions.values()):
            session.on_failure(session.epoch, error)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / _RENEWALS_A_LEASE)
            if not self._sessions:
                continue
            ids = list(self._sessions)
            for link in self.links:
                try:
                    gone = await link.renew(self.head, ids)
                except ShardhubError as error:
                    log.warning("leases at %s were not renewed: %s", link.name, error)
                    continue
                for session_id in gone:
                    if (session := self._sessions.get(session_id)) is not None and session.is_open:
                        lost = SessionUnknown(f"{link.name} does not hold the session any more.")
                        session.on_failure(session.epoch, lost)
