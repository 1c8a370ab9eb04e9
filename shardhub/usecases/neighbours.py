"""Weight files from other nodes of the cluster: who has which, who fetches which, and what is left for this process.

A file that no neighbour has is fetched from its Hub by one process, and by the others from that one. A process first
claims the file, then asks all neighbours. If one of them has begun to fetch it, or claims it with a higher rank, the
claim is dropped. If one claims it with a lower rank, that one drops its claim, or has begun before it saw this one: it
is asked again. As each states its claim before it asks, two that know each other never both begin. Nobody waits for a
neighbour that does not come further: then the file is claimed like one that nobody fetches.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from shardhub.errors import NodeLost, NodeUnreachable, ShardhubError, StepTimeout
from shardhub.hub.claims import Claims
from shardhub.hub.download import Origin
from shardhub.hub.neighbours import InOrder, Turns
from shardhub.limits import MAX_NODES_KEPT
from shardhub.manifest import WeightFile
from shardhub.node.peers import DEFAULT_PEERS, Network, check_network
from shardhub.security.trust import PLAIN, Security
from shardhub.sizes import size_text
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.neighbour import AWAY_S, Neighbour, NeighbourFile, plain
from shardhub.usecases.turns import SharedTurns
from shardhub.wire.files import STALL_S, file_options, find_files
from shardhub.wire.secure import open_channel

# How long a neighbour may take to be reached, and to say what it has.
_ASK_TIMEOUT_S = 10.0
# The first question waits this long for those that do not answer; then the fetch begins, and they may come later.
_FIRST_WAIT_S = 3.0
# Between two attempts to reach a neighbour that never answered, such as a node that is just starting.
_MEET_AGAIN_S = 1.0
# Neighbours that are busy are asked again for this long before the Hub is: each file that comes from one of them need
# not come from far away.
_BUSY_S = 60.0
# Between two questions to those that fetch what is needed here, about.
_POLL_S = 0.5
# Between two questions to a neighbour whose claim is about to be dropped, or to become a fetch.
_CONTEST_POLL_S = 0.02


class AskedNeighbours:
    """Neighbours by their addresses; a context manager.

    A neighbour that refuses, stalls or sends wrong bytes costs a note, and is left out from then on. One that does not
    answer costs a note, and is tried again now and then.

    Args:
        addresses: Returns the addresses that people named; called when files are needed.
        known: Returns addresses that were learned, which are dialled only within `allowed`.
        allowed: Networks of learned addresses.
        security: How they are reached.
        loop: Runs the calls.
        notice: Called with remarks for people.
        claims: What this process fetches.
        announce: Has this process's claims be seen by others, and returns its port; 0 if they are not seen.
        stall_s: How long a neighbour may take for a megabyte.
        busy_s: How long busy neighbours are asked again.
        poll_s: How often those that fetch what is needed here are asked, about.
        shuffle: Puts the neighbours that have a file into the order in which they are tried: several nodes that fetch
            the same should not all ask one neighbour.
    """

    def __init__(
        self,
        addresses: Callable[[], Sequence[str]],
        *,
        known: Callable[[], Sequence[str]] = tuple,
        allowed: Sequence[Network] = DEFAULT_PEERS,
        loop: LoopThread,
        notice: Callable[[str], None],
        security: Security = PLAIN,
        claims: Claims | None = None,
        announce: Callable[[], int] = lambda: 0,
        stall_s: float = STALL_S,
        busy_s: float = _BUSY_S,
        poll_s: float = _POLL_S,
        shuffle: Callable[[list[Neighbour]], None] = random.shuffle,
    ) -> None:
        self.claims = claims or Claims()
        self._addresses = addresses
        self._known = known
        self._allowed = allowed
        self._loop = loop
        self.notice = notice
        self._security = security
        self._announce = announce
        self._port = 0
        self._stall_s = stall_s
        self._busy_s = busy_s
        self._poll_s = poll_s
        self._shuffle = shuffle
        self._neighbours: dict[str, Neighbour] = {}
        # Questions to those that never answered, which nobody waits for.
        self._meeting: dict[Neighbour, asyncio.Task[None]] = {}
        self._is_asked = False

    def __enter__(self) -> AskedNeighbours:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.wait(self._close())

    def meet(self, address: str, *, is_calling: bool = True) -> None:
        """Ask a node too from now on; its address was learned, and at most `MAX_NODES_KEPT` are.

        Args:
            is_calling: Whether it has just called, so that it will answer.
        """
        if address not in self._neighbours and len(self._neighbours) >= MAX_NODES_KEPT:
            return
        self._neighbours.setdefault(address, Neighbour(address=address, is_named=False)).is_calling |= is_calling

    def ask(self, files: Sequence[WeightFile]) -> None:
        """As `Neighbours.ask`; all are asked at once."""
        patience_s = 0.0
        if not self._is_asked:
            self._is_asked, patience_s = True, _FIRST_WAIT_S
            self._port = self._announce()
            for address in self._addresses():
                self._neighbours.setdefault(address, Neighbour(address=address)).is_named = True
            for address in self._known():
                self.meet(address, is_calling=False)
        self._ask(files, patience_s=patience_s)
        holders = {file.sha256: self._holders(file) for file in files}
        here = [file for file in files if holders[file.sha256]]
        if here:
            size = size_text(sum(file.size_bytes for file in here))
            addresses = dict.fromkeys(one.address for file in here for one in holders[file.sha256])
            self.notice(f"fetching {len(here)} of {len(files)} weight files ({size}) from {', '.join(addresses)}")

    def have(self, file: WeightFile) -> bool:
        """As `Neighbours.have`."""
        return bool(self._holders(file))

    def turns(self, files: Sequence[WeightFile]) -> Turns:
        """As `Neighbours.turns`."""
        return SharedTurns(self, files, poll_s=self._poll_s) if self._neighbours or self._port else InOrder(files)

    def ask_again(self, files: Sequence[WeightFile]) -> None:
        """Find out what has changed since the neighbours were asked last."""
        self._ask(files)

    def _ask(self, files: Sequence[WeightFile], *, patience_s: float = 0.0) -> None:
        """Ask all neighbours for files.

        Args:
            patience_s: How long to wait for those that have not answered yet; then they may answer later.
        """
        self._loop.wait(self._ask_all({file.sha256: file for file in files}, patience_s))

    async def _ask_all(self, files: Mapping[str, WeightFile], patience_s: float) -> None:
        now = time.monotonic()
        awaited = []
        for one in [one for one in list(self._neighbours.values()) if not one.is_out]:
            if one.answered_at or one.is_calling:
                if (task := self._meeting.pop(one, None)) is not None:
                    task.cancel()
                awaited.append(one)
            elif one not in self._meeting and now >= one.meet_at:
                one.meet_at = now + _MEET_AGAIN_S
                task = self._meeting[one] = asyncio.create_task(self._ask_one(one, files))
                task.add_done_callback(partial(self._met, one))
        asking: list[Awaitable[object]] = [self._ask_one(one, files) for one in awaited]
        if self._meeting and patience_s:
            asking.append(asyncio.wait(self._meeting.values(), timeout=patience_s))
        await asyncio.gather(*asking)

    async def _ask_one(self, neighbour: Neighbour, files: Mapping[str, WeightFile]) -> None:
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S):
                if neighbour.opened is None:
                    if not neighbour.is_named:
                        await check_network(neighbour.address, self._allowed)
                    neighbour.opened = await open_channel(neighbour.address, self._security, file_options())
                try:
                    holdings = await find_files(
                        neighbour.opened.channel, neighbour.address, list(files), port=self._port
                    )
                except ShardhubError as error:
                    raise await neighbour.opened.explain(error) from error
        except (ShardhubError, TimeoutError) as error:
            await self._failed(neighbour, error)
            return
        neighbour.learn(files, holdings)
        # Addresses that lead to this process, or to a node that is known by another one.
        if neighbour.instance and neighbour.instance in {
            self.claims.instance,
            *(one.instance for one in self._present if one is not neighbour),
        }:
            neighbour.is_out = True

    def _met(self, neighbour: Neighbour, task: asyncio.Task[None]) -> None:
        if self._meeting.get(neighbour) is task:
            del self._meeting[neighbour]

    async def _failed(self, neighbour: Neighbour, error: ShardhubError | TimeoutError) -> None:
        is_passing = isinstance(error, TimeoutError | NodeUnreachable | NodeLost | StepTimeout)
        neighbour.is_here = neighbour.is_calling = False
        if not neighbour.answered_at and neighbour.opened is not None:
            # A new channel is dialled at once; this one would wait first.
            opened, neighbour.opened = neighbour.opened, None
            await opened.channel.close()
        if is_passing and neighbour.answered_at and time.monotonic() - neighbour.answered_at <= AWAY_S:
            return
        neighbour.forget()
        neighbour.is_out = not is_passing
        if neighbour.is_named and not neighbour.is_reported:
            neighbour.is_reported = True
            reason = plain(f"{error.what} {error.why}") if isinstance(error, ShardhubError) else "It does not answer."
            self.notice(f"no weight files from {neighbour.address}: {reason}")

    @property
    def _present(self) -> list[Neighbour]:
        return [one for one in list(self._neighbours.values()) if one.answered_at and not one.is_out]

    def _holders(self, file: WeightFile) -> list[Neighbour]:
        return [one for one in self._present if one.is_here and file.sha256 in one.has]

    def origins(self, file: WeightFile) -> Sequence[Origin]:
        """The neighbours that have a file; only the last of them is waited for if it is busy."""
        holders = self._holders(file)
        self._shuffle(holders)
        return [
            NeighbourFile(
                one,
                file,
                loop=self._loop,
                stall_s=self._stall_s,
                busy_s=self._busy_s if one is holders[-1] else 0.0,
            )
            for one in holders
        ]

    def fetching(self, file: WeightFile) -> list[Neighbour]:
        """Neighbours from which a file will come: they fetch it, or have it and are away for a moment."""
        return [
            one
            for one in self._present
            if one.claim_of(file.sha256, stall_s=self._stall_s) is not None
            or (file.sha256 in one.has and not one.is_here)
        ]

    def win(self, file: WeightFile, check: Callable[[], None]) -> bool:
        """Claim a file; returns whether this process is the one to fetch it."""
        sha256, claims = file.sha256, self.claims
        claims.claim(sha256)
        while True:
            self._ask([file])
            rivals = self.fetching(file)
            if self.have(file) or any(one.is_ahead(sha256, claims.rank(sha256)) for one in rivals):
                claims.drop(sha256)
                return False
            if not rivals:
                claims.begin(sha256)
                return True
            check()
            time.sleep(_CONTEST_POLL_S)

    async def _close(self) -> None:
        for task in list(self._meeting.values()):
            task.cancel()
        for neighbour in self._neighbours.values():
            if neighbour.opened is not None:
                await neighbour.opened.channel.close()
