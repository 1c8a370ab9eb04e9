"""Weight files from other nodes of the cluster: who has which, and reading them from whoever can give them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field

from shardhub.errors import NodeLost, NodeUnreachable, Overloaded, ShardhubError
from shardhub.hub.download import Origin
from shardhub.manifest import WeightFile
from shardhub.security.trust import PLAIN, Security
from shardhub.sizes import size_text
from shardhub.usecases.loop import LoopThread
from shardhub.wire.files import STALL_S, FileStream, file_options, find_files
from shardhub.wire.secure import OpenChannel, open_channel

# How long a neighbour may take to be reached, and to say what it has.
_ASK_TIMEOUT_S = 10.0
# Neighbours that are busy are asked again for this long before the Hub is: each file that comes from one of them need
# not come from far away.
_BUSY_S = 60.0
_BUSY_POLL_S = 1.0
# Most characters of what a neighbour says about itself.
_SHOWN = 200


@dataclass(kw_only=True, eq=False)
class _Neighbour:
    """A node, and what is known of it.

    Attributes:
        opened: Its channel; None before it was reached.
        has: sha256 of the files it has.
        is_out: Whether it failed, and is not asked any more.
    """

    address: str
    opened: OpenChannel | None = None
    has: set[str] = field(default_factory=set)
    is_out: bool = False


class AskedNeighbours:
    """Neighbours by their addresses; a context manager.

    A neighbour that does not answer, refuses, stalls or sends wrong bytes costs a note, and is left out from then on.

    Args:
        addresses: Returns their addresses; called when files are needed.
        security: How they are reached.
        loop: Runs the calls.
        notice: Called with remarks for people.
        stall_s: How long a neighbour may take for a megabyte.
        busy_s: How long busy neighbours are asked again.
        shuffle: Puts the neighbours that have a file into the order in which they are tried: several nodes that fetch
            the same should not all ask one neighbour.
    """

    def __init__(
        self,
        addresses: Callable[[], Sequence[str]],
        *,
        loop: LoopThread,
        notice: Callable[[str], None],
        security: Security = PLAIN,
        stall_s: float = STALL_S,
        busy_s: float = _BUSY_S,
        shuffle: Callable[[list[_Neighbour]], None] = random.shuffle,
    ) -> None:
        self._addresses = addresses
        self._loop = loop
        self._notice = notice
        self._security = security
        self._stall_s = stall_s
        self._busy_s = busy_s
        self._shuffle = shuffle
        self._neighbours: list[_Neighbour] | None = None

    def __enter__(self) -> AskedNeighbours:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.wait(self._close())

    def ask(self, files: Sequence[WeightFile]) -> None:
        """As `Neighbours.ask`; all are asked at once."""
        if self._neighbours is None:
            self._neighbours = [_Neighbour(address=address) for address in self._addresses()]
        self._loop.wait(self._ask_all([one for one in self._neighbours if not one.is_out], files))
        holders = {file.sha256: self._holders(file) for file in files}
        here = [file for file in files if holders[file.sha256]]
        if here:
            size = size_text(sum(file.size_bytes for file in here))
            addresses = dict.fromkeys(one.address for file in here for one in holders[file.sha256])
            self._notice(f"fetching {len(here)} of {len(files)} weight files ({size}) from {', '.join(addresses)}")

    def origins(self, file: WeightFile) -> Sequence[Origin]:
        """As `Neighbours.origins`; only the last of them is waited for if it is busy."""
        holders = self._holders(file)
        self._shuffle(holders)
        return [
            _NeighbourFile(
                one,
                file,
                loop=self._loop,
                stall_s=self._stall_s,
                busy_s=self._busy_s if one is holders[-1] else 0.0,
            )
            for one in holders
        ]

    def _holders(self, file: WeightFile) -> list[_Neighbour]:
        return [one for one in self._neighbours or () if not one.is_out and file.sha256 in one.has]

    async def _ask_all(self, neighbours: Sequence[_Neighbour], files: Sequence[WeightFile]) -> None:
        await asyncio.gather(*(self._ask(one, files) for one in neighbours))

    async def _ask(self, neighbour: _Neighbour, files: Sequence[WeightFile]) -> None:
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S):
                if neighbour.opened is None:
                    neighbour.opened = await open_channel(neighbour.address, self._security, file_options())
                try:
                    sizes = await find_files(
                        neighbour.opened.channel, neighbour.address, [file.sha256 for file in files]
                    )
                except ShardhubError as error:
                    raise await neighbour.opened.explain(error) from error
        except (ShardhubError, TimeoutError) as error:
            neighbour.is_out = True
            reason = _plain(f"{error.what} {error.why}") if isinstance(error, ShardhubError) else "It does not answer."
            self._notice(f"no weight files from {neighbour.address}: {reason}")
            return
        neighbour.has |= {file.sha256 for file in files if sizes.get(file.sha256) == file.size_bytes}

    async def _close(self) -> None:
        for neighbour in self._neighbours or ():
            if neighbour.opened is not None:
                await neighbour.opened.channel.close()


class _NeighbourFile:
    """A weight file that a neighbour has, as an `Origin`."""

    num_tries = 1

    def __init__(
        self, neighbour: _Neighbour, file: WeightFile, *, loop: LoopThread, stall_s: float, busy_s: float
    ) -> None:
        self.name = f"{file.name} at {neighbour.address}"
        self.place = neighbour.address
        self.size_bytes = file.size_bytes
        self._sha256 = file.sha256
        self._neighbour = neighbour
        self._loop = loop
        self._stall_s = stall_s
        self._busy_s = busy_s

    def read(self, start: int, progress: Callable[[int], None]) -> Iterator[memoryview]:
        """As `Origin.read`.

        Raises:
            Overloaded: The neighbour is busy, and stays so.
            NodeLost: It cannot be read to the end; it is left out from then on.
        """
        until, has_begun = time.monotonic() + self._busy_s, False
        while True:
            try:
                for data in self._read(start, progress):
                    has_begun = True
                    yield data
                return
            except ShardhubError as error:
                if has_begun or not isinstance(error, Overloaded):
                    self._neighbour.is_out = True
                    raise NodeLost(f"{self.name} could not be read to its end: {_plain(error.what)}") from error
                if time.monotonic() >= until:
                    raise Overloaded(f"{self.place} is busy.", why=_plain(error.what)) from error
            time.sleep(_BUSY_POLL_S)
            progress(0)

    def distrust(self) -> None:
        """Leave the neighbour out from now on."""
        self._neighbour.is_out = True

    def _read(self, start: int, progress: Callable[[int], None]) -> Iterator[memoryview]:
        stream = self._loop.wait(self._open(start))
        # One read is always on its way while the bytes of the one before are hashed and written.
        reading = self._loop.submit(stream.read())
        try:
            while data := LoopThread.result_of(reading):
                reading = self._loop.submit(stream.read())
                progress(len(data))
                yield memoryview(data)
        finally:
            self._loop.call(stream.cancel)
            wait([reading])

    async def _open(self, start: int) -> FileStream:
        if self._neighbour.opened is None:
            raise NodeUnreachable(f"{self.place} was never reached.")
        channel = self._neighbour.opened.channel
        return FileStream(channel, self.place, self._sha256, start, self.size_bytes, stall_s=self._stall_s)


def _plain(text: str) -> str:
    """What another node says, fit for a line on a terminal."""
    return "".join(char if char.isprintable() else " " for char in text.strip())[:_SHOWN]
