"""`shardhub status` over real nodes: its table, and its report on nodes that are away."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import time
from dataclasses import replace

import pytest

from shardhub.chain.chain import Chain
from shardhub.chain.chain_status import Reading, chain_status, read_nodes
from shardhub.chain.links import NodeLink, describe
from shardhub.chain.request import Request
from shardhub.chain.scheduler import Scheduler
from shardhub.cli.commands.status import WatchFlags, record, status, text
from shardhub.cli.flags import Output
from shardhub.cli.pipeline_flags import ServedPipelineFlags
from shardhub.errors import NodeLoading
from shardhub.parameters import SamplingParameters
from tests import cut, forks, nodes

NUM_TOKENS = 6
QUICK = ("--interval", "0.1")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("status")
    return cut.cut(cut.tiny_model(folder / "model"), folder / "out", (2, 4))


@pytest.fixture(scope="module")
def served(pipeline):
    """The first stage on one node, and the others together on another."""
    folders = [cut.shard_folder(pipeline, index) for index in range(3)]
    started = nodes.start((folders[0],), (folders[1], folders[2]), options=("--context", "256"))
    yield started
    nodes.stop_all(started)


@pytest.fixture
def shown(capsys):
    """Run the command in this process; returns its exit code and its output, decoded from JSON."""

    def status_of(pipeline, addresses, *, as_json=True):
        watching = WatchFlags(node=list(addresses), once=True, interval=0.1)
        code = status(ServedPipelineFlags(pipeline=str(pipeline.folder)), watching, Output(as_json=as_json))
        printed = capsys.readouterr().out
        return code, json.loads(printed) if as_json else printed

    return status_of


def answer(served) -> None:
    """Run one request over the nodes."""

    async def run():
        chain = await Chain.start([NodeLink(node.address, await describe(node.address)) for node in served])
        try:
            asked = Request(prompt=[1, 2, 3], parameters=SamplingParameters(), max_tokens=NUM_TOKENS, reuse=False)
            stream = Scheduler(chain).submit(asked)
            assert len([token async for token in stream]) == NUM_TOKENS
            await stream.ended.wait()
        finally:
            await chain.stop()

    asyncio.run(run())


def test_status_tells_what_each_stage_did(pipeline, served, shown) -> None:
    """Rows are in stage order, whatever the order of the options; an answer raises every stage's counters alike."""
    addresses = [served[1].address, served[0].address]
    _, before = shown(pipeline, addresses)
    answer(served)
    code, after = shown(pipeline, addresses)
    assert code == 0
    assert [node["address"] for node in after["nodes"]] == [node.address for node in served]
    assert [node["stages"] for node in after["nodes"]] == [[0], [1, 2]]
    assert [node["layers"] for node in after["nodes"]] == [[0, 2], [2, 6]]
    for old, new in zip(before["nodes"], after["nodes"], strict=True):
        assert new["load"]["decode_ids"] - old["load"]["decode_ids"] == NUM_TOKENS - 1
        assert new["load"]["decode_steps"] - old["load"]["decode_steps"] == NUM_TOKENS - 1
        assert new["load"]["sessions"] == 0
        assert new["load"]["parked_sessions"] == 0
        assert new["decode"]["compute_s"] > 0
        assert new["decode"]["rows"] == 1
        assert new["decode"]["tokens_per_s"] == 0
        assert not new["decode"]["is_current"]
        assert new["host"]["mlx"]
        assert new["host"]["backend"]
    computed = [node["decode"]["compute_s"] for node in after["nodes"]]
    assert after["alone_step_s"] == pytest.approx(sum(computed))
    assert after["chain_step_s"] == pytest.approx(max(computed))
    assert [node["is_slowest"] for node in after["nodes"]] == [value == max(computed) for value in computed]
    assert (after["can_run"], after["unserved"], after["problem"]) == (True, [], None)


def test_status_into_a_pipe_is_one_plain_table(pipeline, served) -> None:
    """One line for each node, the chain's limit, and the need of a single machine, without escape codes."""
    answer(served)
    env = {"SHARDHUB_NODES": ",".join(node.address for node in served)}
    result = nodes.shardhub("status", "--manifest", pipeline.folder, *QUICK, env=env)
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    rows = [line.split() for line in lines if line.strip()]
    assert rows[0][:4] == ["stage", "layers", "node", "state"]
    for row, stage, layers, node in zip(rows[1:3], ("0", "1-2"), ("0-1", "2-5"), served, strict=True):
        assert row[:3] == [stage, layers, node.address]
    assert sorted(row[3] for row in rows[1:3]) == ["ready", "slowest"]
    assert result.stdout.count("No stage decoded anything since the last reading") == 1
    assert result.stdout.count("alone") == 1


def test_status_tells_a_node_that_loads_from_one_that_is_gone(pipeline) -> None:
    """The row of a loading node says so, its address appears once, and the hint is to wait."""
    address = "10.0.0.1:50051"
    error = NodeLoading(f"{address}: The node is still loading its stage.", hint="Try again in a moment.")
    chain = chain_status(pipeline.manifest, [Reading(address=address, at=0.0, error=error)])
    lines = text(chain).splitlines()
    assert lines[4].split() == ["?", "?", address, "loading"]
    assert "Try: Wait until 10.0.0.1:50051 has loaded its stage." in lines
    assert str(error) in lines
    assert [node["state"] for node in record(chain, pipeline)["nodes"]] == ["loading"]


def test_status_shows_a_node_that_is_gone_as_a_row(pipeline, served, shown) -> None:
    """The stage of a lost node is unserved: exit code 5 with why and hint; the other node's row is unchanged."""
    gone = "127.0.0.1:9"
    named = [part for address in (gone, served[0].address) for part in ("--node", address)]
    result = nodes.shardhub("status", pipeline.folder, *named, *QUICK)
    assert result.returncode == 5
    assert "Traceback" not in result.stderr
    assert f"{served[0].address} ready" in result.stdout
    assert f"?      {gone}" in result.stdout
    assert "unreachable" in result.stdout
    rows = [line.split()[0] for line in result.stdout.splitlines()[1:5]]
    assert rows == ["0", "1", "2", "?"]
    assert "No node serves stages 1 (layers 2 to 3), 2 (layers 4 to 5)" in result.stdout
    assert "shardhub serve" in result.stdout
    code, report = shown(pipeline, [gone, served[0].address])
    assert code == 5
    assert report["unserved"] == [1, 2]
    assert [node["state"] for node in report["nodes"]] == ["ready", "unreachable"]
    assert report["nodes"][1]["error"]["error"] == "NodeUnreachable"
    assert report["problem"]["exit_code"] == 5


def test_status_lists_a_missing_stage_in_its_place(pipeline, served) -> None:
    """Stages are listed in order whether they are served or not: a gap is seen where it is."""
    named = [part for node in served[1:] for part in ("--node", node.address)]
    result = nodes.shardhub("status", pipeline.folder, *named, *QUICK)
    assert [line.split()[0] for line in result.stdout.splitlines()[1:3]] == ["0", "1-2"]
    assert "no node serves it" in result.stdout.splitlines()[1]


def test_status_without_nodes_says_what_is_missing(pipeline, shown) -> None:
    """Every stage has a row without a node."""
    code, printed = shown(pipeline, [], as_json=False)
    assert code == 5
    assert printed.count("no node serves it") == 3


def test_status_of_another_pipelines_node(pipeline, served, shown, tmp_path) -> None:
    """The node is shown as serving something else, and counts for no stage."""
    other = cut.cut(cut.tiny_model(tmp_path / "model", "qwen2"), tmp_path / "out", (3,))
    code, report = shown(other, [served[0].address])
    assert code == 5
    assert [node["state"] for node in report["nodes"]] == ["serves something else"]
    assert report["nodes"][0]["error"]["error"] == "OtherPipeline"
    assert report["unserved"] == [0, 1]


@pytest.mark.parametrize("tables", [1, 3])
def test_status_on_a_terminal_goes_on_until_it_is_stopped(pipeline, served, tables: int) -> None:
    """The table is redrawn until Ctrl-C, which ends the command with exit code 0, also during the first drawing."""
    ours, theirs = pty.openpty()
    named = [part for node in served for part in ("--node", node.address)]
    command = ["status", str(pipeline.folder), *named, *QUICK]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    process = forks.popen(command, stdout=theirs, stderr=subprocess.PIPE, env=env)
    os.close(theirs)
    try:
        shown = b""
        while shown.count(b"sessions: running") < tables:  # the legend, once in each table
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                if not os.read(ours, 65536):
                    break
            except OSError:  # how Linux says that the other side is closed
                break
        assert process.wait(60) == 0, process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        os.close(ours)


def test_a_node_that_slept_is_named(pipeline, served) -> None:
    """The table names the machine that slept, and for how long."""
    addresses = [node.address for node in served]
    first, *others = asyncio.run(read_nodes(pipeline.manifest, addresses))
    slept = {**first.load, "slept_s": 90.0, "slept_at": time.time() - 600}
    readings = [replace(first, description=replace(first.description, load=slept)), *others]
    assert f"{addresses[0]}: its machine was asleep for 90 s, 10 min ago" in text(
        chain_status(pipeline.manifest, readings)
    )
    assert "asleep" not in text(chain_status(pipeline.manifest, others))


def test_weight_files_that_were_sent_are_counted(pipeline, served) -> None:
    """The table names nodes that have given weight files to others; one that has given none is not mentioned."""
    first, *others = asyncio.run(read_nodes(pipeline.manifest, [node.address for node in served]))
    assert "weight files" not in text(chain_status(pipeline.manifest, [first, *others]))
    load = {**first.load, "shared_bytes": 3.2e9, "shared_transfers": 1.0}
    readings = [replace(first, description=replace(first.description, load=load)), *others]
    assert (
        f"{first.address}: it has sent other nodes 3.20 GB of weight files, and is sending 1 now"
        in text(chain_status(pipeline.manifest, readings)).splitlines()
    )
