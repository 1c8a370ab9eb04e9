"""A TCP proxy that injects faults: a partition, a reset, a slow line, a line that trickles."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from typing import Literal

_READ_BYTES = 1 << 16
_TRICKLE_S = 0.01
Direction = Literal["there", "back"]


class Proxy:
    """Forwards a port of its own to an address; its behaviour can be changed while it runs.

    Attributes:
        address: Where it listens.
    """

    def __init__(self, onward: str = "") -> None:
        self.onward = onward
        self._silent: set[Direction] = set()
        self._is_down = False
        self._delay_s = 0.0
        self._bytes_at_once = _READ_BYTES
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def port(self) -> str:
        return self.address.rpartition(":")[2]

    def silence(self, *directions: Direction) -> None:
        """Partition the line: connections stay, and nothing passes, in one direction or, by default, both."""
        self._silent = set(directions or ("there", "back"))

    def slow(self, delay_s: float) -> None:
        """Hold back each piece for this long."""
        self._delay_s = delay_s

    def slice(self, num_bytes: int) -> None:
        """Pass this many bytes at once, with pauses."""
        self._bytes_at_once = num_bytes

    def reset(self) -> None:
        """Reset all connections; new ones work."""
        self._run(self._reset())

    def down(self) -> None:
        """Reset all connections, and new ones too."""
        self._is_down = True
        self.reset()

    def heal(self) -> None:
        """Pass everything again; connections that lost bytes are reset."""
        if self._silent:
            self.reset()
        self._silent, self._is_down, self._delay_s, self._bytes_at_once = set(), False, 0.0, _READ_BYTES

    def close(self) -> None:
        """End it."""
        self._is_down = True
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _reset(self) -> None:
        for writer in list(self._open):
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _end(self) -> None:
        self._server.close()
        await self._reset()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        onward: asyncio.StreamWriter | None = None
        try:
            if self._is_down:
                return
            host, _, port = self.onward.rpartition(":")
            back, onward = await asyncio.open_connection(host, int(port))
            self._open.add(onward)
            passing = [self._pass("there", reader, onward), self._pass("back", back, writer)]
            _, left = await asyncio.wait(map(asyncio.ensure_future, passing), return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()
        except OSError:
            pass  # nobody behind it: the connection ends
        finally:
            for one in (writer, onward):
                if one is not None:
                    self._open.discard(one)
                    one.transport.abort()

    async def _pass(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_READ_BYTES):
                if direction in self._silent:
                    continue
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                step = self._bytes_at_once
                for at in range(0, len(data), step):
                    writer.write(data[at : at + step])
                    if step < _READ_BYTES:
                        await asyncio.sleep(_TRICKLE_S)
                await writer.drain()
