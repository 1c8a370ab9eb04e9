"""Heads before, in and after their `with` blocks, and calls from other threads and loops."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shardhub
from shardhub.shard import read_pipeline
from tests import cut
from tests.waiting import until, wait_until

HI = [1, 2, 3]
LONG = shardhub.Sampling(max_tokens=900)
SHORT = shardhub.Sampling(max_tokens=2)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> str:
    """The folder of a tiny pipeline, whose stages run in this process."""
    folder = tmp_path_factory.mktemp("blocks")
    tiny_tokenizer(cut.tiny_model(folder / "model"))
    return str(cut.cut(folder / "model", folder / "out", (3,)).folder)


def _num_answers(head: shardhub.Head) -> int:
    return len(head._head._head.scheduler.streams)


def test_a_call_of_another_thread_fails_as_the_block_ends(pipeline: str) -> None:
    """An answer and a stream in other threads raise `HeadClosed` when the block ends."""
    has_piece = threading.Event()

    def read(head: shardhub.Head) -> None:
        for _ in head.stream(HI, LONG):
            has_piece.set()

    with ThreadPoolExecutor(2) as pool:
        with shardhub.open_head(pipeline) as head:
            calls = [pool.submit(head.answer, HI, LONG), pool.submit(read, head)]
            wait_until(lambda: _num_answers(head) == 2 and has_piece.is_set())
        for call in calls:
            with pytest.raises(shardhub.HeadClosed, match="before the answer was complete"):
                call.result()


def test_a_task_fails_as_the_block_of_its_head_ends(pipeline: str) -> None:
    """An answer and a stream in other tasks fail when the block ends, as in threads."""

    async def scenario() -> None:
        async with shardhub.open_head(pipeline) as head:
            stream = head.stream(HI, LONG)
            await anext(stream)
            reading = asyncio.create_task(_read(stream))
            answering = asyncio.create_task(head.answer(HI, LONG))

            async def both_run() -> bool:
                return len(head._head.scheduler.streams) == 2

            await until(both_run)
        for task in (reading, answering):
            with pytest.raises(shardhub.HeadClosed):
                await task

    asyncio.run(scenario())


async def _read(stream: shardhub.AsyncAnswerStream) -> None:
    async for _ in stream:
        pass


def test_an_answer_closed_before_its_end_has_no_finish(pipeline: str) -> None:
    """`length` is reported only for an answer with the maximal number of tokens."""
    with shardhub.open_head(pipeline) as head:
        stream = head.stream(HI, LONG)
        next(stream)
        assert stream.answer.finish is None
        stream.close()
        assert stream.answer.finish is None
        assert head.answer(HI, SHORT).finish == "length"


def test_a_head_outside_its_block_refuses_calls(pipeline: str) -> None:
    """The error says why; and a block may be left twice, or before it was entered."""
    block = shardhub.open_head(pipeline)
    block.__exit__(None, None, None)
    with block as head:
        with pytest.raises(shardhub.UsageError, match="already entered"):
            block.__enter__()
        assert head.answer(HI, SHORT).finish == "length"
    block.__exit__(None, None, None)
    for call in (
        lambda: head.answer(HI),
        lambda: head.chat([{"role": "user", "content": "Hello"}]),
        lambda: head.stream(HI),
        lambda: head.score(HI),
        head.status,
    ):
        with pytest.raises(shardhub.UsageError, match="This head is closed"):
            call()


def test_an_async_head_outside_its_block_refuses_calls(pipeline: str) -> None:
    """The call is refused at once, and no tokenizer workers are started for it."""

    async def scenario() -> None:
        block = shardhub.open_head(pipeline)
        await block.__aexit__(None, None, None)
        async with block as head:
            with pytest.raises(shardhub.UsageError, match="already entered"):
                await block.__aenter__()
            assert (await head.answer(HI, SHORT)).finish == "length"
        await block.__aexit__(None, None, None)
        for call in (head.answer("Hello"), head.score("Hello"), anext(head.stream("Hello"))):
            with pytest.raises(shardhub.UsageError, match="This head is closed"):
                await call
        with pytest.raises(shardhub.UsageError, match="This head is closed"):
            head.status()

    asyncio.run(scenario())


def test_an_async_head_refuses_another_loop(pipeline: str) -> None:
    """A call from another loop is refused with the reason, and the head goes on in its own loop."""

    async def scenario() -> None:
        async with shardhub.open_head(pipeline) as head:

            def elsewhere() -> None:
                asyncio.run(head.answer(HI, SHORT))

            with pytest.raises(shardhub.UsageError, match="another event loop"):
                await asyncio.to_thread(elsewhere)
            assert (await head.answer(HI, SHORT)).finish == "length"

    asyncio.run(scenario())


# A program that leaves neither the blocks nor the stream that it entered, as an interactive session does.
LEFT_OPEN = """
import sys
import shardhub

nodes = [shardhub.serve(folder).__enter__() for folder in sys.argv[2:]]
settings = shardhub.HeadSettings(pipeline=sys.argv[1], nodes=tuple(node.address for node in nodes), allow_local=False)
head = shardhub.open_head(settings).__enter__()
stream = head.stream([1, 2, 3], shardhub.Sampling(max_tokens=900))
next(stream)
"""


def test_process_ends_well_though_its_blocks_were_never_left(pipeline: str) -> None:
    """The process exits silently with 0: MLX's state is freed early, as it would abort the interpreter's end."""
    shards = [str(cut.shard_folder(read_pipeline(Path(pipeline)), index)) for index in range(2)]
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN, pipeline, *shards], capture_output=True, text=True, check=False, timeout=240
    )
    assert (done.returncode, done.stderr) == (0, "")


# A program that serves a pipeline, runs another one in this process, and prints which threads loaded code of MLX.
LOADING = """
import json, sys, threading

class Loads:
    def find_spec(self, name, path, target=None):
        if name.startswith(("mlx.", "mlx_lm.")):
            threads.add(threading.current_thread().name)

threads = set()
sys.meta_path.insert(0, Loads())
import shardhub

with shardhub.serve(sys.argv[2]) if sys.argv[2:] else shardhub.open_head(sys.argv[1]):
    pass
print(json.dumps(sorted(threads)))
"""


@pytest.mark.parametrize("is_node", [False, True], ids=["head", "node"])
def test_only_threads_that_are_waited_for_load_mlx(pipeline: str, is_node: bool) -> None:
    """No executor's thread loads MLX: it keeps state whose end aborts a process that is ending."""
    shards = [str(cut.shard_folder(read_pipeline(Path(pipeline)), 0))] if is_node else []
    done = subprocess.run(
        [sys.executable, "-c", LOADING, pipeline, *shards], capture_output=True, text=True, check=True, timeout=240
    )
    assert "shardhub-compute" in json.loads(done.stdout)
    assert set(json.loads(done.stdout)) <= {"shardhub-compute", "shardhub-loop", "MainThread"}


# A program that ends its gateway while a whole answer and a stream are in progress, and prints what the clients got.
CUT_SHORT = """
import json, sys, threading, urllib.error, urllib.request
import shardhub

def ask(stream):
    body = {"model": "m", "prompt": [1, 2, 3], "max_tokens": 900, "ignore_eos": True, "stream": stream}
    request = urllib.request.Request(
        gateway.url + "/v1/completions", data=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as response:
            first = response.readline()
            began.release()
            results[stream] = response.status, first.decode() + response.read().decode()
    except urllib.error.HTTPError as error:
        results[stream] = error.code, error.read().decode()

def num_answers():
    with urllib.request.urlopen(gateway.url + "/health") as response:
        return json.load(response)["answers"]

results, began = {}, threading.Semaphore(0)
settings = shardhub.GatewaySettings(port=0, shutdown_timeout_s=0)
with shardhub.open_gateway(sys.argv[1], settings) as gateway:
    clients = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False)]
    for client in clients:
        client.start()
    began.acquire()
    while num_answers() < 2:
        pass
for client in clients:
    client.join()
print(json.dumps([results[False], results[True]]))
"""


def test_answers_that_outlast_a_gateway_end_with_503(pipeline: str) -> None:
    """Answers get 503 or, once streamed, an error event without [DONE]; and the library prints nothing."""
    done = subprocess.run(
        [sys.executable, "-c", CUT_SHORT, pipeline], capture_output=True, text=True, check=False, timeout=240
    )
    assert (done.returncode, done.stderr) == (0, "")
    (status, whole), (streamed_status, streamed) = json.loads(done.stdout)
    assert status == 503
    assert json.loads(whole)["error"]["code"] == "head_closed"
    assert streamed_status == 200
    *_, last = streamed.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "head_closed"
    assert "[DONE]" not in streamed
