"""Tenants of a gateway whose clients leave at random while nodes come and go, and checks of what is left."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import psutil

from shardhub.chain.head import Head
from shardhub.chain.links import describe
from shardhub.chain.settings import SchedulerSettings
from shardhub.chain.stream import Stream
from shardhub.errors import ShardhubError
from shardhub.gateway.keys import Keys, digest_of
from shardhub.gateway.served_models import ServedModels
from shardhub.gateway.server import Gateway, listening
from shardhub.gateway.service import Service
from shardhub.gateway.settings import GatewaySettings
from tests.soak.nemesis import HANG_S, QUICK, Cluster, Report
from tests.waiting import until

KEYS = tuple(letter * 32 for letter in "abc")
_CLIENTS_A_KEY = 3
# What a gateway may answer while nodes are gone: everything else is broken.
_STATUSES = {200, 429, 500, 502, 503, 504}
# Seconds a client waits for a whole answer: node after node may be lost meanwhile, and it goes on each time.
_ANSWER_S = 5 * HANG_S
# Tasks of clients' connections that are kept a while, and of a look at nodes.
_MOST_TASKS_MORE = 4


async def tenants_soak(cluster: Cluster, *, seed: int, seconds: float) -> Report:
    """Run clients and faults for this long; afterwards every tenant is answered, and nothing is left.

    Invariants: no stream stands still for long, and each client that stays is answered; afterwards all tenants are
    answered, no answer is on its way, no stream, task or session is left, and no descriptor.
    """
    report = Report(seed=seed)
    head = await Head.start(
        cluster.pipeline,
        cluster.addresses,
        context=512,
        allow_local=False,
        liveness=QUICK,
        scheduling=SchedulerSettings(recover_wait_s=30.0, prefill_chunk=16, wait_s=60.0),
    )
    try:
        async with _gateway(head) as url:
            async with httpx.AsyncClient(base_url=url, timeout=HANG_S) as client:
                for key in KEYS:
                    assert await _is_answered(client, key)
                num_tasks, num_descriptors = len(asyncio.all_tasks()), psutil.Process().num_fds()
            ends_at = time.monotonic() + seconds
            watching = asyncio.create_task(_watch_progress(head, report))
            breaking = asyncio.create_task(_come_and_go(cluster, random.Random(seed + 1), ends_at, report))
            await asyncio.gather(
                *(
                    _client(url, key, random.Random(f"{seed} {key} {number}"), ends_at, report)
                    for key in KEYS
                    for number in range(_CLIENTS_A_KEY)
                )
            )
            await breaking
            watching.cancel()
            await asyncio.wait({watching})
            async with httpx.AsyncClient(base_url=url, timeout=HANG_S) as client:
                await _settled(cluster, head, client, report)
                for key in KEYS:
                    if not await _is_answered(client, key):
                        report.broken.append(f"the tenant of key {key[0]}... is not answered any more")
            await _nothing_left(num_tasks, num_descriptors, report)
    finally:
        await head.stop()
        head.tokenizer.close()
    return report


@asynccontextmanager
async def _gateway(head: Head) -> AsyncIterator[str]:
    settings = GatewaySettings(port=0, keys=Keys(digests=tuple(map(digest_of, KEYS))), max_queue=256)
    with listening(settings) as listener:
        models = ServedModels(settings)
        service = await Service.start(head, settings)
        models.add(service)
        gateway, ready = Gateway(models), asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(gateway.run(listener, on_ready=ready.set_result))
        try:
            yield await ready
        finally:
            gateway.stop()
            await serving
            service.close()


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def _is_answered(client: httpx.AsyncClient, key: str) -> bool:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    answer = await client.post("/v1/chat/completions", json=body, headers=_headers(key))
    return answer.status_code == 200


async def _client(url: str, key: str, dice: random.Random, ends_at: float, report: Report) -> None:
    """Send requests by either API, and read to the end or leave before or during the answer."""
    while time.monotonic() < ends_at:
        leaves_s = dice.uniform(0.0, 3.0) if dice.random() < 0.5 else None
        body = {"max_tokens": dice.randrange(1, 150), "stream": dice.random() < 0.5}
        text = "hello " * dice.randrange(1, 40)
        path, said = dice.choice(
            [
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
                ("/v1/completions", {"prompt": text, "n": dice.randrange(1, 3)}),
                ("/v1/messages", {"model": "m", "messages": [{"role": "user", "content": text}]}),
            ]
        )
        try:
            async with (
                asyncio.timeout(leaves_s),
                httpx.AsyncClient(base_url=url, timeout=_ANSWER_S) as client,
                client.stream("POST", path, json=body | said, headers=_headers(key)) as answer,
            ):
                async for _ in answer.aiter_bytes():
                    pass
        except TimeoutError:
            report.outcomes["left"] += 1
        except httpx.TimeoutException:
            report.outcomes["hang"] += 1
            report.broken.append(f"{path} was not answered within {_ANSWER_S:.0f} s")
        else:
            report.outcomes[str(answer.status_code)] += 1
            if answer.status_code not in _STATUSES:
                report.broken.append(f"{path} was answered with {answer.status_code}")


async def _watch_progress(head: Head, report: Report) -> None:
    """Record each stream that has neither computed nor drawn anything for too long."""
    last: dict[Stream, tuple[tuple[int, int], float]] = {}
    while True:
        now = time.monotonic()
        for stream in head.scheduler.streams:
            at = (stream.num_generated, stream.session.position if stream.is_served else 0)
            if stream not in last or last[stream][0] != at:
                last[stream] = (at, now)
            elif now - last[stream][1] > HANG_S:
                report.broken.append(f"a stream stood still at {at} for {HANG_S:.0f} s")
                last[stream] = (at, now)
        last = {stream: seen for stream, seen in last.items() if stream in head.scheduler.streams}
        await asyncio.sleep(1.0)


async def _come_and_go(cluster: Cluster, dice: random.Random, ends_at: float, report: Report) -> None:
    """Inject one fault after the other: one or both nodes of a stage end and return, or are unreachable for a while."""
    loop = asyncio.get_running_loop()
    while time.monotonic() < ends_at:
        index = dice.randrange(len(cluster.nodes))
        kind = dice.choice(["kill", "kill both", "partition", "reset"])
        report.faults[kind] += 1
        if kind.startswith("kill"):
            gone = [index, cluster.twin(index)] if kind == "kill both" else [index]
            for other in gone:
                await loop.run_in_executor(None, cluster.kill, other)
            await asyncio.sleep(dice.uniform(0.0, 4.0))
            await asyncio.gather(*(loop.run_in_executor(None, cluster.restart, other) for other in gone))
        elif kind == "reset":
            cluster.proxies[index].reset()
        else:
            cluster.proxies[index].silence()
            await asyncio.sleep(dice.uniform(0.1, 5.0))
            cluster.proxies[index].heal()
        await asyncio.sleep(dice.uniform(0.2, 3.0))


async def _settled(cluster: Cluster, head: Head, client: httpx.AsyncClient, report: Report) -> None:
    """The gateway is ready with no answer in progress, and no node has an open session."""
    scheduler = head.scheduler
    seen: Counter[str] = Counter()

    async def is_quiet() -> bool:
        health = await client.get("/health", headers=_headers(KEYS[0]))
        seen.clear()
        seen["not ready"] = health.status_code != 200
        seen["answers"] = health.json().get("answers", 0)
        seen["streams"] = len(scheduler.streams)
        seen["waiting"] = scheduler.num_waiting
        seen["decoding"] = scheduler.num_decoding
        try:
            seen["sessions"] = sum([(await describe(address)).num_sessions for address in cluster.addresses])
        except ShardhubError:
            seen["nodes that do not answer"] += 1
        return not any(seen.values())

    try:
        await until(is_quiet, timeout_s=90)
    except AssertionError:
        report.broken.append(f"left: { {name: num for name, num in seen.items() if num} }")


async def _nothing_left(num_tasks: int, num_descriptors: int, report: Report) -> None:
    async def is_gone() -> bool:
        no_tasks = len(asyncio.all_tasks()) <= num_tasks + _MOST_TASKS_MORE
        return no_tasks and psutil.Process().num_fds() <= num_descriptors + 16

    try:
        await until(is_gone, timeout_s=60)
    except AssertionError:
        names = Counter(_name(task) for task in asyncio.all_tasks())
        report.broken.append(
            f"{len(asyncio.all_tasks())} tasks, {num_tasks} before: {names.most_common(5)}; "
            f"{psutil.Process().num_fds()} descriptors, {num_descriptors} before"
        )


def _name(task: asyncio.Task[object]) -> str:
    return getattr(task.get_coro(), "__qualname__", "?")
