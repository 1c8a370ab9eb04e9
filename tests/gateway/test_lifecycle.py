"""Clients that leave, too many clients, lost nodes, and signals to a gateway."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from tests import cut, nodes
from tests.gateway.conftest import PIECE_S, save_model
from tests.gateway.serving import GatewayProcess
from tests.proxy import Proxy
from tests.selection import variants
from tests.waiting import wait_until

HI = [{"role": "user", "content": "hi"}]
LONG = {"messages": HI, "max_tokens": 400, "ignore_eos": True}
# A lost node is seen in a second or two; the machine may stall meanwhile.
SEEN_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A chain of two nodes, the first behind a line that can be slowed down to slow the answers."""

    pipeline: Path
    started: list[nodes.Node]
    line: Proxy

    @property
    def addresses(self) -> list[str]:
        return [self.line.address, self.started[1].address]

    @contextmanager
    def slowed(self):
        self.line.slow(PIECE_S)
        try:
            yield
        finally:
            self.line.heal()


def sessions(http) -> list[int | None]:
    """The number of sessions on each node; None if a node did not answer."""
    return [node.get("sessions") for node in http.get("/shardhub/state").json()["nodes"]]


def answers(http) -> int:
    """The number of answers in progress or waiting, also while the chain is broken."""
    return http.get("/shardhub/state").json()["requests"]["answers"]


def asked(url, body) -> socket.socket:
    """A connection on which a chat request was sent, and nothing is read."""
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: " + str(len(content)).encode() + b"\r\n\r\n" + content
    )
    return connection


def first_chunks(stream, num=3):
    lines = (line for line in stream.iter_lines() if line.startswith("data: "))
    return [next(lines) for _ in range(num)], lines


@contextmanager
def two_nodes(folder):
    """A chain with room for two sessions."""
    pipeline = cut.cut(save_model(folder / "model"), folder / "out", (3,))
    started = nodes.start(
        (cut.shard_folder(pipeline, 0),),
        (cut.shard_folder(pipeline, 1),),
        options=("--context", "1024", "--max-sessions", "2"),
    )
    line = Proxy(started[0].address)
    try:
        yield Pair(pipeline=pipeline.folder, started=started, line=line)
    finally:
        nodes.stop_all(started)
        line.close()


@contextmanager
def gateway_of(chain):
    """A gateway with a queue of one and a short wait for lost nodes."""
    options = ("--model-name", "tiny", "--max-queue", "1", "--recover-wait", "1", "--no-local")
    process = GatewayProcess(chain.pipeline, chain.addresses, options)
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with two_nodes(tmp_path_factory.mktemp("pair")) as chain:
        yield chain


@pytest.fixture(scope="module")
def small(pair):
    with gateway_of(pair) as process:
        yield process


@pytest.mark.parametrize("stream", variants([True, False]))
def test_a_client_that_goes_away_frees_everything(slow_gateway, stream) -> None:
    """A client leaves during the answer: no session is left on any node, and no answer is counted as running."""
    with httpx.Client(base_url=slow_gateway.url, timeout=60) as http:
        wait_until(lambda: sessions(http) == [0, 0])
        connection = asked(slow_gateway.url, {**LONG, "max_tokens": 450, "stream": stream})
        wait_until(lambda: sessions(http) == [1, 1])
        drawn = http.get("/shardhub/state").json()["requests"]["tokens"]
        connection.close()
        wait_until(lambda: sessions(http) == [0, 0])
        wait_until(lambda: http.get("/health").json()["answers"] == 0)
        after = http.get("/shardhub/state").json()["requests"]
        assert after["tokens"] - drawn < 100, "the answer went on"


def test_too_many_requests_are_refused_at_once(pair, small) -> None:
    """With two requests running and one waiting, the next is refused at once with a time to retry.

    The client retries by itself.
    """
    with ThreadPoolExecutor(4) as pool, httpx.Client(base_url=small.url, timeout=60) as http:
        with pair.slowed():
            running = [pool.submit(http.post, "/v1/chat/completions", json=LONG) for _ in range(3)]
            wait_until(lambda: http.get("/health").json()["answers"] == 3)
            refused = http.post("/v1/chat/completions", json=LONG)
            assert not any(future.done() for future in running)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 0
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        client = openai.OpenAI(base_url=f"{small.url}/v1", api_key="x", max_retries=60)
        again = client.chat.completions.create(model="tiny", messages=HI, max_tokens=2)
        assert again.choices[0].finish_reason == "length"
        assert [future.result().status_code for future in running] == [200, 200, 200]
        wait_until(lambda: http.get("/health").json()["answers"] == 0)
        wait_until(lambda: sessions(http) == [0, 0])
        client.close()


def test_a_waiting_client_that_goes_away_makes_room(pair, small) -> None:
    """A waiting client that leaves frees its place in the queue at once."""
    with ThreadPoolExecutor(4) as pool, httpx.Client(base_url=small.url, timeout=60) as http:
        with pair.slowed():
            running = [pool.submit(http.post, "/v1/chat/completions", json=LONG) for _ in range(2)]
            wait_until(lambda: sessions(http) == [2, 2])
            waiting = asked(small.url, LONG)
            wait_until(lambda: http.get("/health").json()["answers"] == 3)
            waiting.close()
            wait_until(lambda: http.get("/health").json()["answers"] < 3)
            assert not any(future.done() for future in running)
        assert [future.result().status_code for future in running] == [200, 200]


def test_a_drain_finishes_what_is_on_its_way(pair) -> None:
    """New requests are refused, a running stream ends with its [DONE], and the process exits with 0."""
    with gateway_of(pair) as process, httpx.Client(base_url=process.url, timeout=60) as http, pair.slowed():
        with http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as stream:
            _, lines = first_chunks(stream)
            process.process.send_signal(signal.SIGTERM)
            wait_until(lambda: http.get("/health/ready").status_code == 503)
            refused = http.post("/v1/chat/completions", json={"messages": HI, "max_tokens": 2})
            assert refused.status_code == 503
            pair.line.heal()
            assert list(lines)[-1] == "data: [DONE]"
        assert process.process.wait(nodes.END_TIMEOUT_S) == 0


def test_a_second_signal_ends_it_at_once(pair) -> None:
    """A second signal does not wait for answers, which end with an error."""
    with gateway_of(pair) as process, pair.slowed():
        body = {**LONG, "max_tokens": 900, "stream": True}
        with httpx.stream("POST", f"{process.url}/v1/chat/completions", json=body, timeout=60) as stream:
            _, lines = first_chunks(stream)
            process.process.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx.get(f"{process.url}/health", timeout=60).status_code == 503)
            process.process.send_signal(signal.SIGTERM)
            rest = []
            with contextlib.suppress(httpx.HTTPError):
                rest += lines
            assert "data: [DONE]" not in rest
        assert process.process.wait(nodes.END_TIMEOUT_S) == 143


def test_a_node_lost_in_mid_stream_is_an_error_event(tmp_path) -> None:
    """The error event follows the text so far, without [DONE]: OpenAI's client raises; later requests get a status.

    Who watches the chain sees it within seconds.
    """
    with (
        two_nodes(tmp_path) as chain,
        gateway_of(chain) as process,
        ThreadPoolExecutor(1) as pool,
        chain.slowed(),
    ):
        watching = pool.submit(first_loss, process.url)
        client = openai.OpenAI(base_url=f"{process.url}/v1", api_key="x", max_retries=0)
        with httpx.Client(base_url=process.url, timeout=60) as http:
            body = {**LONG, "max_tokens": 900, "stream": True}
            with http.stream("POST", "/v1/chat/completions", json=body) as stream:
                _, lines = first_chunks(stream)
                parts = client.chat.completions.create(model="tiny", messages=HI, max_tokens=900, stream=True)
                next(parts)
                chain.started[1].kill()
                killed_at = time.monotonic()
                rest = [line[6:] for line in lines]
            assert "[DONE]" not in rest
            error = json.loads(rest[-1])["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["type"] == "server_error"
            with pytest.raises(openai.APIError):
                list(parts)
            refused = http.post("/v1/chat/completions", json={"messages": HI, "max_tokens": 2})
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) > 0
            assert http.get("/health/live").status_code == 200
            assert http.get("/health/ready").status_code == 503
            assert watching.result() - killed_at < SEEN_S
        client.close()


def test_a_node_lost_in_mid_stream_is_an_error_in_every_api(tmp_path) -> None:
    """Clients of the Responses API and of Anthropic's raise, too, so that no partial answer looks whole."""
    import anthropic

    with two_nodes(tmp_path) as chain, gateway_of(chain) as process, chain.slowed():
        old = openai.OpenAI(base_url=f"{process.url}/v1", api_key="x", max_retries=0)
        other = anthropic.Anthropic(base_url=process.url, api_key="x", max_retries=0)
        with old, other:
            more = {"ignore_eos": True}
            items = old.responses.create(model="tiny", input="hi", max_output_tokens=900, stream=True, extra_body=more)
            blocks = other.messages.create(model="tiny", messages=HI, max_tokens=900, stream=True, extra_body=more)
            seen = [next(items) for _ in range(5)]
            assert next(blocks).type == "message_start"
            assert next(blocks).type == "content_block_start"
            chain.started[1].kill()
            with pytest.raises(openai.APIError):
                seen.extend(items)
            assert seen[-1].type == "response.failed"
            assert seen[-1].response.error.message
            with pytest.raises(anthropic.APIStatusError) as caught:
                list(blocks)
            assert caught.value.body["error"]["type"] == "overloaded_error"  # which has clients ask again
            with pytest.raises(anthropic.APIStatusError) as caught:
                other.messages.create(model="tiny", messages=HI, max_tokens=2)
            assert caught.value.status_code == 503
            assert caught.value.body["error"]["type"] == "overloaded_error"


def first_loss(url) -> float:
    """Monotonic time at which the chain's feed first shows a lost node, in seconds; every event has both stages."""
    with httpx.stream("GET", f"{url}/shardhub/events", timeout=60) as stream:
        for line in stream.iter_lines():
            if not line.startswith("data: "):
                continue
            state = json.loads(line[6:])
            assert [stage["stages"] for stage in state["stages"]] == [[0], [1]]
            if not all(node["alive"] for node in state["nodes"]):
                return time.monotonic()
    raise AssertionError("the feed ended")


@pytest.mark.parametrize("stream", variants([True, False]))
def test_a_client_that_leaves_while_a_node_is_away_holds_up_nobody(pair, stream) -> None:
    """The request ends at once; when the node is back, the next one is answered, whichever API it uses."""
    options = ("--model-name", "tiny", "--recover-wait", "600", "--no-local")
    body = {"messages": HI, "max_tokens": 2}
    process = GatewayProcess(pair.pipeline, pair.addresses, options)
    try:
        with httpx.Client(base_url=process.url, timeout=60) as http:
            assert http.post("/v1/chat/completions", json=body).status_code == 200
            pair.line.down()
            wait_until(lambda: http.get("/health/ready").status_code == 503)
            left = [asked(process.url, {**body, "stream": stream}) for _ in range(2)]
            wait_until(lambda: answers(http) == 2)
            for connection in left:
                connection.close()
            wait_until(lambda: answers(http) == 0)
            pair.line.heal()
            wait_until(lambda: http.get("/health/ready").status_code == 200)
            assert http.post("/v1/chat/completions", json=body).status_code == 200
            assert http.post("/v1/completions", json={"prompt": "A", "max_tokens": 2}).status_code == 200
    finally:
        pair.line.heal()
        process.stop()


def test_silence_is_broken_by_comments(served) -> None:
    """A stream with a long prompt sends comments with its progress, which clients skip."""
    import asyncio

    from shardhub.gateway.events import EventStream

    sent: list[bytes] = []

    async def run():
        commented = asyncio.Event()

        async def slow():
            await commented.wait()
            yield b"data: 1\n\n"

        stream = EventStream(slow(), comment=lambda: "keepalive 3/4", keepalive_s=0.1)

        async def send(message):
            sent.append(message.get("body", b""))
            if sent[-1].startswith(b":"):
                commented.set()

        async def receive():
            await asyncio.Event().wait()

        await stream({"type": "http"}, receive, send)

    asyncio.run(run())
    text = b"".join(sent)
    assert text.startswith(b": keepalive 3/4\n\n")
    assert text.endswith(b"data: 1\n\n")
    assert threading.active_count() < 50
