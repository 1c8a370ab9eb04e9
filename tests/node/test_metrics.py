"""Metrics of real nodes and of a head agree with what was run."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.request
from contextlib import asynccontextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shardhub.address import Address
from shardhub.chain.chain import Chain
from shardhub.chain.links import NodeLink, describe
from shardhub.chain.local_link import LocalLink
from shardhub.chain.metrics import HeadMetrics
from shardhub.chain.request import Request
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.settings import SchedulerSettings
from shardhub.engine.engine import Engine, EngineSettings
from shardhub.errors import ContextExceeded, UsageError, WireError
from shardhub.node.metrics import parse_listen
from shardhub.parameters import SamplingParameters
from shardhub.protocol import Lane
from tests import cut, nodes, tiny

CONTEXT = 128
NUM_TOKENS = 9
CHUNK = 8
PROMPT = [int(v) % tiny.VOCAB for v in range(7, 7 + 21 * 29, 29)]
# 20 ids in chunks of 8, then the last one alone.
PREFILL_STEPS = 4
ID_BYTES = 4
HIDDEN_BYTES = 4 * tiny.CONFIGS["llama"]["hidden_size"]
GREEDY = SamplingParameters()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    return cut.cut(cut.tiny_model(folder / "model"), folder / "out", (2,))


@pytest.fixture(scope="module")
def served(pipeline):
    """The model's two stages on nodes of their own."""
    groups = [(cut.shard_folder(pipeline, index),) for index in range(2)]
    started = nodes.start(*groups, options=("--context", str(CONTEXT), "--metrics", "0"))
    yield started
    nodes.stop_all(started)


@asynccontextmanager
async def scheduler_over(*links):
    chain = await Chain.start(links)
    scheduler = Scheduler(chain, SchedulerSettings(prefill_chunk=CHUNK))
    try:
        yield scheduler
    finally:
        await scheduler.stop()
        await chain.stop()


async def links_to(served):
    return [NodeLink(node.address, await describe(node.address)) for node in served]


def request(prompt=PROMPT, num_tokens=NUM_TOKENS, **options):
    return Request(prompt=prompt, parameters=GREEDY, max_tokens=num_tokens, **options)


async def answer(scheduler, asked):
    stream = scheduler.submit(asked)
    tokens = [token.id async for token in stream]
    await stream.ended.wait()
    return tokens


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Values by name and label values, buckets left out."""
    return {
        (sample.name, *(value for key, value in sample.labels.items() if key != "layers")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


def scrape(node) -> str:
    with urllib.request.urlopen(f"http://{node.ready['metrics']}/metrics", timeout=30) as reply:
        assert reply.headers["Content-Type"].startswith("text/plain; version=")
        return reply.read().decode()


async def risen(node, before, name, value):
    """The increases since `before`, once one of them has this value: a head may have a result before it is counted."""
    deadline = time.monotonic() + 30
    while True:
        after = samples(await asyncio.to_thread(scrape, node))
        since = {key: count - before.get(key, 0) for key, count in after.items()}
        if since[name] >= value:
            return since
        assert time.monotonic() < deadline, f"{name} stays at {since[name]}, below {value}"
        await asyncio.sleep(0.02)


def test_node_counts_steps_ids_and_bytes_exactly(served) -> None:
    """One answer raises chunks, steps, ids, and bytes of ids and hidden states on each stage by exact numbers."""

    async def run():
        before = [samples(scrape(node)) for node in served]
        loads = [(await describe(node.address)).load for node in served]
        async with scheduler_over(*await links_to(served)) as scheduler:
            assert len(await answer(scheduler, request(reuse=False))) == NUM_TOKENS
            steps = {"prefill": PREFILL_STEPS, "decode": NUM_TOKENS - 1}
            ids = {"prefill": len(PROMPT), "decode": NUM_TOKENS - 1}
            for at, id_bytes, sent_bytes in ((0, ID_BYTES, ID_BYTES + HIDDEN_BYTES), (1, ID_BYTES + HIDDEN_BYTES, 0)):
                for lane in ("prefill", "decode"):
                    sent = ("shardhub_step_send_seconds_count", lane)
                    rise = await risen(served[at], before[at], sent, steps[lane])
                    assert rise[sent] == steps[lane]
                    for timed in ("compute", "wait"):
                        assert rise[f"shardhub_step_{timed}_seconds_count", lane] == steps[lane]
                    assert rise["shardhub_step_compute_seconds_sum", lane] > 0
                    assert rise["shardhub_step_rows_sum", lane] == steps[lane]
                    assert rise["shardhub_tokens_total", lane] == ids[lane]
                    assert rise["shardhub_received_bytes_total", lane] == id_bytes * ids[lane]
                    assert rise["shardhub_sent_bytes_total", lane] == sent_bytes * ids[lane]
                load = (await describe(served[at].address)).load
                assert load["decode_ids"] - loads[at]["decode_ids"] == ids["decode"]
                assert load["prefill_sent_bytes"] - loads[at]["prefill_sent_bytes"] == sent_bytes * ids["prefill"]
                assert load["failures"] == loads[at]["failures"]

    asyncio.run(run())


def test_node_tells_its_sessions_kv_and_failures(served) -> None:
    """Open and parked sessions, their reserved KV, and refusals by error class are exported."""

    async def run():
        async with scheduler_over(*await links_to(served)) as scheduler:
            chain, node = scheduler.chain, served[0]
            session = await chain.open(context=CONTEXT, parameters=GREEDY)
            await (await session.send(PROMPT, sample=True, lane=Lane.PREFILL))
            after = samples(await asyncio.to_thread(scrape, node))
            assert (after["shardhub_sessions", "active"], after["shardhub_sessions", "parked"]) == (1, 0)
            reserved = after["shardhub_kv_reserved_bytes",]
            assert 0 < reserved < after["shardhub_kv_budget_bytes",] == node.ready["kv_budget_bytes"]
            assert after["shardhub_kv_parked_bytes",] == 0
            assert after["shardhub_weight_bytes",] == node.ready["weight_bytes"]
            await session.park()
            after = samples(await asyncio.to_thread(scrape, node))
            assert (after["shardhub_sessions", "active"], after["shardhub_sessions", "parked"]) == (0, 1)
            assert 0 < after["shardhub_kv_parked_bytes",] == after["shardhub_kv_reserved_bytes",] <= reserved
            failures = {key[1]: v for key, v in after.items() if key[0] == "shardhub_failures_total"}
            failures |= {name: failures.get(name, 0) + 1 for name in ("ContextExceeded", "WireError")}
            with pytest.raises(ContextExceeded):
                await chain.open(context=CONTEXT + 1, parameters=GREEDY)
            other = await chain.open(context=CONTEXT, parameters=GREEDY)
            with pytest.raises(WireError, match="vocabulary"):
                await (await other.send([tiny.VOCAB], sample=True, lane=Lane.DECODE))
            after = samples(await asyncio.to_thread(scrape, node))
            assert {key[1]: v for key, v in after.items() if key[0] == "shardhub_failures_total"} == failures

    asyncio.run(run())


def test_head_counts_requests_by_how_they_end(pipeline) -> None:
    """Finished, cancelled and refused requests, drafts, reused prompts and the stage run here are counted."""

    async def run():
        engine = await asyncio.to_thread(Engine.start, cut.shards(pipeline, 0, 1), EngineSettings(context=CONTEXT))
        async with scheduler_over(LocalLink(engine)) as scheduler:
            metrics = HeadMetrics(scheduler)
            tokens = await answer(scheduler, request(reuse=False))

            def next_one(ids):
                return tokens[len(ids) - len(PROMPT) :][:1]

            assert await answer(scheduler, request(drafter=next_one)) == tokens
            # The one before is kept: all of it but its last token, which never ran.
            longer = [*PROMPT, *tokens, 1, 2]
            assert len(await answer(scheduler, request(longer))) == NUM_TOKENS
            stopped = scheduler.submit(request(reuse=False, num_tokens=CONTEXT - len(PROMPT)))
            await anext(aiter(stopped))
            stopped.cancel()
            await stopped.ended.wait()
            with pytest.raises(ContextExceeded):
                scheduler.submit(request([1] * CONTEXT))
            after = samples(metrics.text().decode())
            outcomes = {key[1]: value for key, value in after.items() if key[0] == "shardhub_requests_total"}
            assert outcomes == {"stop": 0, "length": 3, "cancelled": 1, "failed": 0, "refused": 1}
            assert after["shardhub_request_failures_total", "ContextExceeded"] == 1
            generated = 3 * NUM_TOKENS + stopped.num_generated
            assert after["shardhub_generated_tokens_total",] == generated
            assert after["shardhub_time_to_first_token_seconds_count",] == 4
            assert after["shardhub_inter_token_seconds_count",] == generated - 4
            assert after["shardhub_drafted_tokens_total",] == after["shardhub_accepted_tokens_total",] == 4
            assert after["shardhub_prompt_tokens_total",] == 3 * len(PROMPT) + len(longer)
            reused = len(PROMPT) + NUM_TOKENS - 1
            assert after["shardhub_reused_tokens_total",] == reused
            assert after["shardhub_tokens_total", "prefill"] == 3 * len(PROMPT) + len(longer) - reused
            for lane in ("prefill", "decode"):
                rounds = after["shardhub_round_seconds_count", lane]
                assert rounds == after["shardhub_step_rows_count", lane] == after["shardhub_round_rows_count", lane]
            assert after["shardhub_open_requests",] == after["shardhub_waiting_requests",] == 0
            assert after["shardhub_kept_prefixes",] == 1

    asyncio.run(run())


def test_heads_of_one_process_count_apart(pipeline) -> None:
    """Each head of a process has a registry of its own."""

    async def run():
        engine = await asyncio.to_thread(Engine.start, cut.shards(pipeline, 0, 1), EngineSettings(context=CONTEXT))
        async with scheduler_over(LocalLink(engine)) as one, scheduler_over(LocalLink(engine)) as two:
            counted = [HeadMetrics(one), HeadMetrics(two)]
            await answer(one, request(reuse=False))
            after = [samples(metrics.text().decode()) for metrics in counted]
            assert [f["shardhub_requests_total", "length"] for f in after] == [1, 0]

    asyncio.run(run())


def test_labels_and_names_are_as_prometheus_advises(served, pipeline) -> None:
    """Names have base units, no label can hold a prompt, an id or an address, and every metric has a help text."""

    async def run():
        engine = await asyncio.to_thread(Engine.start, cut.shards(pipeline, 0, 1), EngineSettings(context=CONTEXT))
        async with scheduler_over(LocalLink(engine)) as scheduler:
            metrics = HeadMetrics(scheduler)
            await answer(scheduler, request())
            return metrics.text().decode()

    for text in (scrape(served[0]), asyncio.run(run())):
        families = [f for f in text_string_to_metric_families(text) if f.name.startswith("shardhub_")]
        assert len({family.name for family in families}) == len(families) > 10
        for family in families:
            assert family.documentation
            assert not family.name.endswith(("_ms", "_s", "_mb", "_gb", "_us")), family.name
            labels = {key for sample in family.samples for key in sample.labels}
            allowed = {"layers", "lane", "state", "error", "outcome", "place", "le"}
            facts = (
                {"shardhub", "mlx", "mlx_lm", "backend", "blas", "os"}
                if family.name == "shardhub_stage_info"
                else set()
            )
            assert labels <= allowed | facts, family.name


def test_metrics_port_in_use_is_told_before_anything_is_loaded(pipeline) -> None:
    """A metrics port in use ends with one screen and exit code 2, before a stage is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = nodes.shardhub("serve", cut.shard_folder(pipeline, 0), "--port", 0, "--metrics", port)
    assert result.returncode == 2, result.stderr
    assert f"Cannot listen for metrics on {port}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9400", ("127.0.0.1", 9400)),
        (":9400", ("127.0.0.1", 9400)),
        ("192.168.1.7:0", ("192.168.1.7", 0)),
        ("localhost:1", ("localhost", 1)),
        ("[::1]:9400", ("::1", 9400)),
    ],
)
def test_metrics_address_is_read(text, expected) -> None:
    """The address is HOST:PORT, or a port alone."""
    assert parse_listen(text) == Address(*expected)


@pytest.mark.parametrize("text", ["", "host", "host:", "127.0.0.1:65536", "::1:9400", "host:9x", "host:-1"])
def test_malformed_metrics_address_is_refused(text) -> None:
    """A malformed address is refused with the right form."""
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:9400"):
        parse_listen(text)
