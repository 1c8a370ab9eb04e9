"""GET /shardhub/events: the state of the chain once a second, and its events."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from shardhub.chain.chain_status import Reading
from shardhub.chain.events import Event
from shardhub.gateway.events import RESPONSES, EventStream, event
from shardhub.gateway.refusals import RETRY_AFTER_S, Refusal
from shardhub.gateway.service import Service, service_of

router = APIRouter(tags=["chain"])

PERIOD_S = 1.0
MAX_WATCHERS = 32
# Recent events are sent to new watchers.
_MAX_EVENTS = 64


class Feed:
    """Reads the chain's state while at least one client watches.

    Args:
        service: The service whose chain is read.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._news = asyncio.Condition()
        self._num_watchers = 0
        self._reading: asyncio.Task[None] | None = None
        self._state: dict[str, Any] = {}
        self._number = 0
        self._events: deque[dict[str, Any]] = deque(maxlen=_MAX_EVENTS)
        self._num_events = 0
        self._closing = asyncio.Event()
        happened = service.head.scheduler.events
        for past in happened:
            self._happened(past)
        happened.watch(self._happened)

    async def watch(self) -> AsyncGenerator[bytes, None]:
        """Yield states as they are read, each with the events since the one before, as server-sent events.

        Raises:
            Refusal: Too many clients are watching.
        """
        if self._num_watchers >= MAX_WATCHERS:
            retry = {"Retry-After": str(RETRY_AFTER_S)}
            raise Refusal(429, "Too many clients are watching the chain.", code="rate_limit_exceeded", headers=retry)
        self._num_watchers += 1
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        number = seen = 0
        try:
            while not self._closing.is_set():
                async with self._news:
                    while self._number == number and not self._closing.is_set():
                        await self._news.wait()
                if self._closing.is_set():
                    return
                number = self._number
                new = [one for one in self._events if one["number"] > seen]
                seen = self._num_events
                yield event(self._state | {"events": new})
        finally:
            self._num_watchers -= 1

    async def close(self) -> None:
        """End the streams of all watchers."""
        self._closing.set()
        if self._reading is not None:
            self._reading.cancel()
        async with self._news:
            self._news.notify_all()

    async def snapshot(self) -> dict[str, Any]:
        """The current state of the chain."""
        service, head = self._service, self._service.head
        readings = await head.membership.readings()
        local = [{"at": "this process", "alive": True, "load": load} for load in head.local_loads()]
        problem = head.problem
        return {
            "time": time.time(),
            "model": service.model_names[0],
            "pipeline_id": head.pipeline.manifest.pipeline_id,
            "context": service.max_context,
            "ready": problem is None and not service.admission.is_draining,
            "problem": None if problem is None else str(problem),
            "inexact": head.inexact,
            "stages": self._stages(),
            "nodes": [*map(_node, readings), *local],
            "requests": self._requests(),
        }

    def _stages(self) -> list[dict[str, Any]]:
        manifest = self._service.head.pipeline.manifest
        rows: list[dict[str, Any]] = self._service.head.describe_stages()
        for row in rows:
            row["weight_bytes"] = sum(manifest.stages[index].size_bytes for index in row["stages"])
        return rows

    def _requests(self) -> dict[str, Any]:
        scheduler = self._service.head.scheduler
        return {
            "answers": self._service.admission.num,
            "decoding": scheduler.num_decoding,
            "waiting": scheduler.num_waiting,
            "kept_prefixes": len(scheduler.prefixes),
            "tokens": self._service.num_drawn,
            "tokens_per_s": round(self._service.rate.per_s, 2),
            "sent_bytes": scheduler.chain.sent_bytes,
            "received_bytes": scheduler.chain.received_bytes,
        }

    def _happened(self, new: Event) -> None:
        self._num_events += 1
        self._events.append({"number": self._num_events, "time": new.at, "kind": new.kind, "text": new.text})

    async def _read(self) -> None:
        while self._num_watchers and not self._closing.is_set():
            started = time.monotonic()
            state = await self.snapshot()
            async with self._news:
                self._state = state
                self._number += 1
                self._news.notify_all()
            await asyncio.sleep(max(0.05, PERIOD_S - (time.monotonic() - started)))
        self._reading = None


@router.get("/shardhub/events", summary="Watch the chain, once a second", response_class=Response, responses=RESPONSES)
async def events(request: Request) -> Response:
    """Stream the chain's states and events as server-sent events."""
    service = service_of(request)
    feed: Feed = request.app.state.feed
    settings = service.settings
    return EventStream(feed.watch(), keepalive_s=settings.keepalive_s)


@router.get("/shardhub/state", summary="Describe the chain at this moment")
async def state(request: Request) -> dict[str, Any]:
    """The current state, for clients that cannot read a stream."""
    feed: Feed = request.app.state.feed
    return await feed.snapshot()


def _node(reading: Reading) -> dict[str, Any]:
    node: dict[str, Any] = {"at": reading.address, "alive": reading.error is None, "first": reading.first}
    node["last"] = reading.last
    if reading.error is not None:
        # Without the transport's own message, which is long and of no use to a watcher.
        node["error"] = f"{reading.error.what} {reading.error.hint}".strip()
    if (description := reading.description) is not None:
        node |= {
            "host": dict(description.host),
            "load": dict(description.load),
            "sessions": description.num_sessions,
            "max_sessions": description.limits.max_sessions,
            "boot_id": description.boot_id.hex(),
        }
    return node
