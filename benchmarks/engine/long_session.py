"""A session of 30,000 ids beside seven short ones within the KV budget, with a tiny model on 2 stages."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import psutil

from benchmarks.engine.answers import Answer, answer, random_ids
from benchmarks.engine.models import tiny_model
from benchmarks.engine.options import Options
from benchmarks.engine.report import Report, say
from benchmarks.engine.stand import Stand
from shardhub.chain.head import Head
from shardhub.chain.links import describe
from tests.nodes import Node

_VOCAB = 500
_SHORT = 100
_SHORT_TOKENS = 200
_LONG_TOKENS = 64
_NUM_SHORT = 7
_CHANGES = {
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 40_000,
}
# KV of a position: K and V of two heads of 64 in float32, two layers a stage, and the copy of one while it grows.
_POSITION_BYTES = 2 * 2 * 64 * 4 * 3
# Memory a node leaves alone, and what it takes besides.
_USABLE = 0.9
_OTHER_BYTES = 4 << 20


async def measure(options: Options, report: Report) -> None:
    """The nodes' memory is such that the eight sessions fit, and little more; the short ones come and go."""
    num_long = 2000 if options.is_quick else 30_000
    context = num_long + 2 * _LONG_TOKENS
    positions = context + 256 + _NUM_SHORT * (_SHORT + _SHORT_TOKENS + 256)
    memory = int((positions * _POSITION_BYTES + _OTHER_BYTES) / _USABLE)
    placing = options.placing()
    report.settings = {
        "long": f"{num_long} ids, {_LONG_TOKENS} tokens",
        "short": f"{_NUM_SHORT} at once of {_SHORT} ids, {_SHORT_TOKENS} tokens",
        "blas": placing.blas.value,
        "memory": f"{memory / 1e6:.0f} MB a node",
    }
    model = tiny_model(options.folder / "long", **_CHANGES)
    async with Stand(model, placing, report, context=context) as stand:
        nodes = stand.serve(2, "--memory", f"{memory // 1_000_000}MB")
        head = await stand.head(nodes)
        rng = np.random.default_rng(0)
        prompt = random_ids(rng, num_long, _VOCAB)
        await answer(head, random_ids(rng, _SHORT, _VOCAB), 4)
        watch = _Watch(nodes)
        watching = asyncio.create_task(watch.run())
        say(f"a prompt of {num_long} ids beside {_NUM_SHORT} streams")
        started = time.perf_counter()
        short: list[Answer] = []
        clients = [
            asyncio.create_task(_client(head, random_ids(rng, _SHORT, _VOCAB), short)) for _ in range(_NUM_SHORT)
        ]
        answered = await answer(head, prompt, _LONG_TOKENS, reuse=True)
        seconds = time.perf_counter() - started
        for client in clients:
            client.cancel()
        ended = await asyncio.gather(*clients, return_exceptions=True)
        broken = [error for error in ended if not isinstance(error, asyncio.CancelledError)]
        watching.cancel()
        report.add("KV promised / KV budget, most", [max(watch.shares)], at_most=1.0)
        report.add("KV promised, most", [max(watch.promised) / 1e6], "MB")
        report.add("a node's memory grew at most by", watch.grown_mb(), "MB")
        report.add("first token of the long prompt", [answered.times[0]], "s")
        report.add("its decode rate beside the short ones", [answered.tokens_per_s], "tokens/s")
        report.add("short streams meanwhile, together", [sum(len(one.tokens) for one in short) / seconds], "tokens/s")
        report.add("short streams that failed", [len(broken)], at_most=0)
        again = await answer(head, prompt, 16, reuse=True)
        report.add(
            "its tokens again, forked, are the same", [float(again.tokens == answered.tokens[:16])], at_least=1.0
        )
        report.note(f"ids of the second run that were not computed again: {again.reused}")
        report.note(
            "A node's memory grows by scratch memory of attention over the long prompt too: chunk by positions."
        )


async def _client(head: Head, prompt: list[int], begun: list[Answer]) -> None:
    """Short requests, one after the other."""
    while True:
        begun.append(Answer())
        await answer(head, prompt, _SHORT_TOKENS, into=begun[-1])


class _Watch:
    """Looks at nodes while they run."""

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes
        self._processes = [psutil.Process(node.process.pid) for node in nodes]
        self._first = [process.memory_info().rss for process in self._processes]
        self._most = list(self._first)
        self.shares: list[float] = []
        self.promised: list[float] = []

    def grown_mb(self) -> list[float]:
        """Most memory of each beyond what it had."""
        return [(most - first) / 1e6 for most, first in zip(self._most, self._first, strict=True)]

    async def run(self) -> None:
        while True:
            for index, node in enumerate(self._nodes):
                load = (await describe(node.address)).load
                self.promised.append(load["kv_reserved_bytes"])
                self.shares.append(load["kv_reserved_bytes"] / load["kv_budget_bytes"])
                self._most[index] = max(self._most[index], self._processes[index].memory_info().rss)
            await asyncio.sleep(0.2)
