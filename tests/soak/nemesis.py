"""Random traffic and random faults on a real chain, and checks of its invariants.

A run is made from its seed: which requests come, which are given up, which node is killed, frozen, cut off or restarted
when.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from shardhub.chain.assignment import assign_stages
from shardhub.chain.chain import Chain
from shardhub.chain.links import NodeLink, describe
from shardhub.chain.request import Request
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.settings import SchedulerSettings
from shardhub.chain.stream import Stream
from shardhub.errors import ShardhubError
from shardhub.parameters import SamplingParameters
from shardhub.shard import Pipeline
from shardhub.wire.options import Liveness
from tests import cut, nodes, tiny
from tests.proxy import Proxy
from tests.waiting import until

QUICK = Liveness(ping_s=1.0, timeout_s=1.0)
# A request that takes longer hangs: far beyond detection, restart and replay of a tiny model together.
HANG_S = 120.0
_NUM_REQUESTS = 12
_AT_ONCE = 4


@dataclass(slots=True)
class Report:
    """The results of a run.

    Attributes:
        outcomes: Requests by how they ended.
        faults: Faults by kind.
        broken: Invariants that did not hold, in sentences; a good run has none.
    """

    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    num_recoveries: int = 0
    broken: list[str] = field(default_factory=list)

    def line(self) -> str:
        return (
            f"seed {self.seed}: {dict(self.outcomes)}, faults {dict(self.faults)}, "
            f"{self.num_recoveries} recoveries; broken: {self.broken or 'nothing'}"
        )


class Cluster:
    """Two nodes for each stage, each behind a proxy at a fixed address."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.folders = [cut.shard_folder(pipeline, index) for index in range(len(pipeline.manifest.stages))] * 2
        self.proxies = [Proxy() for _ in self.folders]
        self.addresses = [proxy.address for proxy in self.proxies]
        self.nodes: list[nodes.Node] = []
        try:
            self.nodes += [self._node(index) for index in range(len(self.folders))]
            for index in range(len(self.folders)):
                self._wait_ready(index)
        except BaseException:
            self.stop()
            raise

    def _node(self, index: int) -> nodes.Node:
        return nodes.Node(self.folders[index], options=("--advertise", self.addresses[index]))

    def _wait_ready(self, index: int) -> None:
        self.proxies[index].onward = self.nodes[index].wait_ready().address

    def kill(self, index: int) -> None:
        """Kill a node with SIGKILL."""
        self.nodes[index].process.kill()
        self.nodes[index].process.wait()

    def twin(self, index: int) -> int:
        """The other node of the same stage."""
        return (index + len(self.nodes) // 2) % len(self.nodes)

    def restart(self, index: int) -> None:
        """Start a new process at the same address, without any KV."""
        nodes.stop_all([self.nodes[index]])
        self.nodes[index] = self._node(index)
        self._wait_ready(index)

    def send(self, index: int, number: signal.Signals) -> None:
        self.nodes[index].process.send_signal(number)

    def stop(self) -> None:
        nodes.stop_all(self.nodes)
        for proxy in self.proxies:
            proxy.close()


async def soak(cluster: Cluster, *, seed: int, seconds: float) -> Report:
    """Run traffic and faults for this long, then let all requests end and check what is left.

    Invariants: no wrong token (a stream's tokens are those of a run without faults, or a beginning of them and an
    error); no hang; no session left on any node and none of the head's descriptors; nodes that live answer; a request
    that is refused or given up changes no other.
    """
    report = Report(seed=seed)
    dice = random.Random(seed)
    requests = [_request(dice) for _ in range(_NUM_REQUESTS)]
    described = [(address, await describe(address)) for address in cluster.addresses]
    assigned = assign_stages(cluster.pipeline.manifest, described)
    chain = await Chain.start([NodeLink(node.address, node.description, liveness=QUICK) for node in assigned])
    scheduler = Scheduler(chain, SchedulerSettings(recover_wait_s=60.0, prefill_chunk=16))
    try:
        expected = [await _collect(scheduler.submit(request)) for request in requests]
        num_descriptors = psutil.Process().num_fds()
        ends_at = time.monotonic() + seconds
        breaking = asyncio.create_task(_faults(cluster, random.Random(seed + 1), ends_at, report))
        users = [
            _user(scheduler, requests, expected, random.Random(seed + 2 + user), ends_at, report)
            for user in range(_AT_ONCE)
        ]
        await asyncio.gather(*users)
        await breaking
        await _settled(cluster, report, num_descriptors)
        for request, tokens in zip(requests, expected, strict=True):
            if await _collect(scheduler.submit(request)) != tokens:
                report.broken.append("after the faults a request draws other tokens")
    finally:
        await scheduler.stop()
        await chain.stop()
    return report


def _request(dice: random.Random) -> Request:
    parameters = SamplingParameters(temperature=dice.choice([0.0, 0.8]), top_p=0.95, seed=dice.randrange(1000))
    prompt = [dice.randrange(tiny.VOCAB) for _ in range(dice.randrange(2, 80))]
    return Request(prompt=prompt, parameters=parameters, max_tokens=dice.randrange(1, 60), reuse=dice.random() < 0.5)


async def _collect(stream: Stream) -> list[int]:
    tokens = [token.id async for token in stream]
    await stream.ended.wait()
    return tokens


async def _user(
    scheduler: Scheduler,
    requests: Sequence[Request],
    expected: Sequence[list[int]],
    dice: random.Random,
    ends_at: float,
    report: Report,
) -> None:
    """Send requests, now and then give one up, and compare the answers."""
    while time.monotonic() < ends_at:
        index = dice.randrange(len(requests))
        gives_up_at = dice.randrange(1, 40) if dice.random() < 0.2 else None
        stream = scheduler.submit(requests[index])
        tokens: list[int] = []
        try:
            async with asyncio.timeout(HANG_S):
                async for token in stream:
                    tokens.append(token.id)
                    if len(tokens) == gives_up_at:
                        stream.cancel()
                        break
                await stream.ended.wait()
        except TimeoutError:
            report.outcomes["hang"] += 1
            report.broken.append(f"a request hung after {len(tokens)} tokens")
            stream.cancel()
        except ShardhubError as error:
            report.outcomes[type(error).__name__] += 1
        else:
            given_up = len(tokens) == gives_up_at and len(tokens) < len(expected[index])
            report.outcomes["given up" if given_up else "done"] += 1
            if not given_up and tokens != expected[index]:
                report.broken.append(f"{len(tokens)} tokens came, {len(expected[index])} were expected")
        if tokens != expected[index][: len(tokens)]:
            report.broken.append(f"a wrong token among the first {len(tokens)}")
        report.num_recoveries += stream.num_recoveries


async def _faults(cluster: Cluster, dice: random.Random, ends_at: float, report: Report) -> None:
    """Inject one fault after the other, never on both nodes of a stage at once."""
    loop = asyncio.get_running_loop()
    while time.monotonic() < ends_at:
        index = dice.randrange(len(cluster.nodes))
        kind = dice.choice(["kill", "freeze", "stutter", "partition", "mute", "reset", "slow"])
        report.faults[kind] += 1
        proxy = cluster.proxies[index]
        if kind == "kill":
            await loop.run_in_executor(None, cluster.kill, index)
            await asyncio.sleep(dice.uniform(0.0, 2.0))
            await loop.run_in_executor(None, cluster.restart, index)
        elif kind == "reset":
            proxy.reset()
        elif kind in ("partition", "mute", "slow"):
            if kind == "slow":
                proxy.slow(0.02)
            else:
                proxy.silence(*(() if kind == "partition" else ("back",)))
            await asyncio.sleep(dice.uniform(0.1, 5.0))
            proxy.heal()
        else:
            cluster.send(index, signal.SIGSTOP)
            await asyncio.sleep(dice.uniform(3.0, 5.0) if kind == "freeze" else dice.uniform(0.05, 0.5))
            cluster.send(index, signal.SIGCONT)
        await asyncio.sleep(dice.uniform(0.2, 2.0))


async def _settled(cluster: Cluster, report: Report, num_descriptors: int) -> None:
    """Every node answers and has no open session, and lost links left no file descriptor."""
    unanswered: list[ShardhubError] = []

    async def none_left() -> bool:
        try:
            return all([(await describe(address)).num_sessions == 0 for address in cluster.addresses])
        except ShardhubError as error:
            unanswered[:] = [error]
            return False

    async def descriptors_closed() -> bool:
        return psutil.Process().num_fds() <= num_descriptors + 16

    try:
        await until(none_left, timeout_s=60)
    except AssertionError:
        report.broken.append(f"sessions are left, or a node does not answer: {unanswered}")
    try:
        await until(descriptors_closed, timeout_s=60)
    except AssertionError:
        more = psutil.Process().num_fds() - num_descriptors
        report.broken.append(f"{more} descriptors more than before the faults")


def small_pipeline(folder: Path) -> Pipeline:
    """A tiny model cut in two."""
    return cut.cut(cut.tiny_model(folder / "model", "llama"), folder / "out", (3,))
