"""A gateway's answers before its chain is complete."""

from __future__ import annotations

import asyncio
import socket

import httpx

from shardhub.errors import RouteError
from shardhub.gateway.served_models import reason_of
from shardhub.gateway.waiting import Waiting


def test_reason_is_told_until_the_chain_is_whole() -> None:
    """Requests get 503 with what is missing, in each API's form; the process is live, and the socket stays open."""

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            waiting = Waiting()
            await waiting.start(listener)
            async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
                assert (await client.get("/health/live")).status_code == 200
                waiting.wait_for(reason_of(RouteError("Nobody serves stage 1.", why="It is gone.")))
                for path in ("/v1/models", "/health/ready", "/"):
                    answer = await client.get(path)
                    assert answer.status_code == 503
                    assert answer.headers["Retry-After"]
                    assert answer.json()["error"]["message"] == "Nobody serves stage 1. It is gone."
                assert (await client.post("/v1/messages", json={})).json()["type"] == "error"
            await waiting.stop()
            assert listener.fileno() >= 0
            with socket.create_connection(listener.getsockname()):
                listener.accept()[0].close()

    asyncio.run(run())
