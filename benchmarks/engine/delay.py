"""A TCP proxy that holds back what passes for a given time, in a process of its own.

python -m benchmarks.engine.delay NUM
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import deque
from typing import Any

from benchmarks.engine.processes import Talker

_READ_BYTES = 1 << 18
# The event loop's timers end up to a millisecond late: the rest is waited for by going round.
_TIMER_S = 0.0012


class DelayProxies:
    """Proxies on ports of their own, started at once: nodes are told of them before they listen themselves.

    Attributes:
        addresses: Where each listens.
    """

    def __init__(self, num: int) -> None:
        self._talker = Talker("benchmarks.engine.delay", num)
        self.addresses = [f"127.0.0.1:{port}" for port in self._talker.ready["ports"]]

    def forward(self, index: int, address: str) -> None:
        """Where one forwards to."""
        self._talker.ask(kind="forward", index=index, port=int(address.rsplit(":", 1)[1]))

    def hold(self, seconds: float) -> None:
        """How long each direction of each connection holds back what passes from now on."""
        self._talker.ask(kind="hold", seconds=seconds)

    def held_s(self) -> float:
        """How long what passed since the last call was really held, on average."""
        seconds: float = self._talker.ask(kind="held")["seconds"]
        return seconds

    def stop(self) -> None:
        """End them."""
        self._talker.stop()


class _Server:
    def __init__(self, num: int) -> None:
        self.ports = [0] * num
        self.seconds = 0.0
        self._held: list[float] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> list[int]:
        ports = []
        for index in range(len(self.ports)):

            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, index: int = index) -> None:
                onward = await asyncio.open_connection("127.0.0.1", self.ports[index], limit=_READ_BYTES)
                await asyncio.gather(self._pass(reader, onward[1]), self._pass(onward[0], writer))

            server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=_READ_BYTES)
            ports.append(server.sockets[0].getsockname()[1])
        return ports

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["kind"] == "forward":
            self.ports[request["index"]] = request["port"]
        elif request["kind"] == "hold":
            self.seconds = request["seconds"]
            self._held.clear()
        else:
            held, self._held = self._held, []
            return {"seconds": sum(held) / len(held) if held else 0.0, "num": len(held)}
        return {}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read as things come, write each when its time has come."""
        waiting: deque[tuple[float, bytes]] = deque()
        news = asyncio.Event()

        async def write() -> None:
            while True:
                while not waiting:
                    news.clear()
                    await news.wait()
                arrived, data = waiting.popleft()
                while (left := arrived + self.seconds - time.perf_counter()) > 0:  # noqa: ASYNC110 - there is no event
                    await asyncio.sleep(max(0.0, left - _TIMER_S))
                if not data:
                    writer.close()
                    return
                writer.write(data)
                self._held.append(time.perf_counter() - arrived)

        task = asyncio.create_task(write())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_READ_BYTES):
                waiting.append((time.perf_counter(), data))
                news.set()
        waiting.append((time.perf_counter(), b""))
        news.set()
        with contextlib.suppress(ConnectionError):
            await task


async def main() -> None:
    server = _Server(int(sys.argv[1]))
    print(json.dumps({"ports": await server.listen()}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(server.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
