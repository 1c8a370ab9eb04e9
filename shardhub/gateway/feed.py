"""GET /shardhub/events: the state of a model's chains once a second, and the events of all chains."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from shardhub.chain.events import Event
from shardhub.gateway.chain_state import state_of
from shardhub.gateway.events import RESPONSES, EventStream, event
from shardhub.gateway.refusals import RETRY_AFTER_S, Refusal
from shardhub.gateway.served_models import ServedModels, models_of
from shardhub.gateway.service import Service

router = APIRouter(tags=["chain"])

PERIOD_S = 1.0
MAX_WATCHERS = 32
# Recent events are sent to new watchers.
_MAX_EVENTS = 64


class EventLog:
    """The recent events of all chains, numbered from 1."""

    def __init__(self, models: ServedModels) -> None:
        self.num = 0
        self._events: deque[dict[str, Any]] = deque(maxlen=_MAX_EVENTS)
        models.watch(self._follow)

    def after(self, number: int) -> list[dict[str, Any]]:
        """The events after one, by its number."""
        return [one for one in self._events if one["number"] > number]

    def _follow(self, service: Service) -> None:
        def happened(new: Event) -> None:
            self.num += 1
            self._events.append(
                {
                    "number": self.num,
                    "time": new.at,
                    "model": service.model_names[0],
                    "kind": new.kind,
                    "text": new.text,
                }
            )

        past = service.head.scheduler.events
        for each in past:
            happened(each)
        past.watch(happened)


class Feed:
    """Reads the state of a model's chains while at least one client watches.

    Args:
        models: The models that are served.
        name: The model's name; None is the first model.
        log: The events.
    """

    def __init__(self, models: ServedModels, name: str | None, log: EventLog) -> None:
        self._models = models
        self._name = name
        self._log = log
        self._news = asyncio.Condition()
        self.num_watchers = 0
        self._reading: asyncio.Task[None] | None = None
        self._state: dict[str, Any] = {}
        self._number = 0
        self._closing = asyncio.Event()

    async def watch(self) -> AsyncGenerator[bytes, None]:
        """Yield states as they are read, each with the events since the one before, as server-sent events."""
        self.num_watchers += 1
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
                new, seen = self._log.after(seen), self._log.num
                yield event(self._state | {"events": new})
        finally:
            self.num_watchers -= 1

    async def close(self) -> None:
        """End the streams of all watchers."""
        self._closing.set()
        if self._reading is not None:
            self._reading.cancel()
        async with self._news:
            self._news.notify_all()

    async def _read(self) -> None:
        while self.num_watchers and not self._closing.is_set():
            started = time.monotonic()
            state = await state_of(self._models, self._name)
            async with self._news:
                self._state = state
                self._number += 1
                self._news.notify_all()
            await asyncio.sleep(max(0.05, PERIOD_S - (time.monotonic() - started)))
        self._reading = None


class Feeds:
    """The feeds of all models.

    Args:
        models: The models that are served.
    """

    def __init__(self, models: ServedModels) -> None:
        self._models = models
        self._log = EventLog(models)
        self._feeds: dict[str | None, Feed] = {}

    async def watch(self, name: str | None) -> AsyncGenerator[bytes, None]:
        """Yield the states of a model's chains, as `Feed.watch`; those of the first model if it is not served.

        Raises:
            Refusal: Too many clients are watching.
        """
        if sum(feed.num_watchers for feed in self._feeds.values()) >= MAX_WATCHERS:
            retry = {"Retry-After": str(RETRY_AFTER_S)}
            raise Refusal(429, "Too many clients are watching the chain.", code="rate_limit_exceeded", headers=retry)
        key = name if name in self._models.names else None
        feed = self._feeds.setdefault(key, Feed(self._models, key, self._log))
        async with aclosing(feed.watch()) as states:
            async for state in states:
                yield state

    async def close(self) -> None:
        """End the streams of all watchers."""
        for feed in self._feeds.values():
            await feed.close()


@router.get("/shardhub/events", summary="Watch the chain, once a second", response_class=Response, responses=RESPONSES)
async def events(request: Request, model: str | None = None) -> Response:
    """Stream the states of a model's chains, and all events, as server-sent events."""
    feeds: Feeds = request.app.state.feeds
    return EventStream(feeds.watch(model), keepalive_s=models_of(request).settings.keepalive_s)


@router.get("/shardhub/state", summary="Describe the chain at this moment")
async def state(request: Request, model: str | None = None) -> dict[str, Any]:
    """The current state of a model's chains, for clients that cannot read a stream."""
    return await state_of(models_of(request), model)
