"""Clients that hold connections and send or read nothing do not block others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from shardhub.connections import Limits, Waiting, protocol
from shardhub.gateway.events import EventStream
from shardhub.gateway.keys import Keys, digest_of
from shardhub.gateway.request_body import MAX_BODY_BYTES
from shardhub.gateway.request_check import RequestCheck
from tests.gateway.serving import GatewayProcess
from tests.waiting import wait_until

# Files of a gateway, and connections that are more than it can have.
NUM_FILES, MANY = 300, 600
MOST_LOG_BYTES = 64 << 10
STALL_S = 0.5
GOOD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF = b"GET /health HTTP/1.1\r\nHost: loc"
BODILESS = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
BIG = b"x" * (8 << 20)


def connected(port) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


@pytest.fixture(scope="module")
def narrow(served):
    """A gateway with a low limit on open files."""
    process = GatewayProcess(served.pipeline, served.addresses, ("--model-name", "tiny"), num_files=NUM_FILES)
    try:
        yield process
    finally:
        log = process.errors()
        assert process.stop() == 0
        assert len(log) < MOST_LOG_BYTES
        assert "Traceback" not in log


@pytest.mark.parametrize("kind", ["silent", "half a second header", "no body"])
def test_idle_connections_lock_nobody_out(narrow, kind) -> None:
    """With more idle connections than file descriptors, others are answered as before, and the log stays short."""
    port = int(narrow.url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        kept = []
        for _ in range(MANY):
            connection = stack.enter_context(connected(port))
            with contextlib.suppress(OSError):  # let go already
                if kind == "half a second header":
                    connection.sendall(GOOD)
                    connection.recv(4096)
                    connection.sendall(HALF)
                elif kind == "no body":
                    connection.sendall(BODILESS)
            kept.append(connection)
        for _ in range(3):
            assert httpx.get(f"{narrow.url}/health", timeout=10).status_code == 200
        body = {"prompt": "A", "max_tokens": 2}
        assert httpx.post(f"{narrow.url}/v1/completions", json=body, timeout=20).status_code == 200


async def unending():
    """Send much, then nothing more."""
    yield BIG
    await asyncio.Event().wait()


async def application(scope, receive, send) -> None:
    """Answers at length on request, and reads a body only for POST."""
    if scope["method"] == "POST":
        while (await receive()).get("more_body"):
            pass
    if scope["path"] == "/stream":
        await EventStream(unending(), keepalive_s=0.05)(scope, receive, send)
        return
    body = BIG if scope["path"] == "/big" else b"{}"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def listening(*, keys=None, num=8, stall_s=STALL_S):
    """The connections and the gate of a gateway before that application; its port, and the server's own list."""
    app = RequestCheck(application, keys=keys or Keys(), stall_s=stall_s)
    kind = protocol(Limits(num=num, stall_s=stall_s), lambda status, message: PlainTextResponse(message, status))
    server = uvicorn.Server(uvicorn.Config(app, http=kind, log_config=None, lifespan="off", port=0))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield listener.getsockname()[1], server.server_state
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)


def answered(connection) -> bytes:
    """The status line of a response, or nothing if the other side closes; a good response is also read."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while not received or (
            received.startswith(b"HTTP/1.1 200") and not received.endswith(b"{}") and len(received) < 65536
        ):
            if not (data := connection.recv(65536)):
                break
            received += data
    return received.split(b"\r\n")[0]


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [HALF],
        [GOOD, HALF],
        [GOOD, GOOD, b"G"],
        [GOOD + HALF],
        [b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"],
    ],
    ids=["nothing", "half", "second half", "third begun", "pipelined half", "body unread"],
)
def test_a_request_that_does_not_come_ends_its_connection(sent) -> None:
    """A request that does not arrive ends its connection, whether it is the first one or a later one."""
    with listening() as (port, state), connected(port) as connection:
        for part in sent:
            connection.sendall(part)
            if part.endswith(b"\r\n\r\n") or part.startswith(GOOD):
                assert answered(connection) == b"HTTP/1.1 200 OK"
        with contextlib.suppress(OSError):
            wait_until(lambda: not connection.send(b"a") or not state.connections)
        wait_until(lambda: not state.connections)


def test_a_body_that_drips_is_refused() -> None:
    """A body that arrives a byte now and then is refused, however often a byte comes."""
    with listening() as (port, _), connected(port) as connection:
        connection.sendall(BODILESS)
        ended = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not ended.wait(STALL_S / 10):
                    connection.sendall(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert answered(connection) == b"HTTP/1.1 408 Request Timeout"
        finally:
            ended.set()
            thread.join()


def test_a_body_after_a_refusal_ends_its_connection() -> None:
    """Without a key no body is waited for, however slowly it arrives."""
    keys = Keys(digests=(digest_of("k" * 32),))
    with listening(keys=keys) as (port, state), connected(port) as connection:
        connection.sendall(BODILESS)
        assert answered(connection) == b"HTTP/1.1 401 Unauthorized"
        with contextlib.suppress(OSError):
            wait_until(lambda: not connection.send(b"a") or not state.connections)
        wait_until(lambda: not state.connections)


@pytest.mark.parametrize("path", [b"/big", b"/stream"])
@pytest.mark.parametrize("ending", [b"", b"Connection: close\r\n"])
def test_an_answer_that_nobody_reads_ends_its_connection(path, ending) -> None:
    """An answer that is not read would be kept for ever: its connection is closed, a stream's comments included."""
    with listening(stall_s=0.1) as (port, state), connected(port) as connection:
        connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + ending + b"\r\n")
        assert answered(connection) == b"HTTP/1.1 200 OK"
        wait_until(lambda: not state.connections)


def test_an_answer_that_is_read_slowly_is_given_whole() -> None:
    """A client that reads slowly is waited for much longer than one that reads nothing."""
    with listening(stall_s=0.1) as (port, state), socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.settimeout(60)
        connection.sendall(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")
        num_read = len(connection.recv(1000))
        for _ in range(30):  # longer than the time after which one that reads nothing is ended
            threading.Event().wait(0.1)
            num_read += len(connection.recv(32 << 10))
        while num_read < len(BIG) and (data := connection.recv(1 << 20)):
            num_read += len(data)
        assert num_read > len(BIG)
        assert state.connections


class Client:
    """A connection that has only its client's address."""

    def __init__(self, address: str) -> None:
        self.address = address


def test_room_is_made_at_the_address_that_has_most() -> None:
    """The address with the most connections loses one, even if another address's has waited longer."""
    waiting = Waiting()
    other, *many = (Client(address) for address in ("10.0.0.2", "10.0.0.1", "10.0.0.1", "10.0.0.1"))
    for connection in (other, *many):
        waiting.add(connection)
    waiting.begin_anew(many[0])
    for expected in (many[1], many[2]):
        assert waiting.longest() is expected
        waiting.remove(expected)
    assert waiting.longest() is other


def test_the_connection_that_waits_longest_makes_room() -> None:
    """One connection too many closes the one that has waited longest, not the newest."""
    with listening(num=3, stall_s=60) as (port, state), contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(connected(port)) for _ in range(3))
        wait_until(lambda: len(state.connections) == 3)
        first.sendall(GOOD)
        assert answered(first) == b"HTTP/1.1 200 OK"  # it waits anew
        fourth = stack.enter_context(connected(port))
        assert answered(second) == b""
        for other in (first, third, fourth):
            other.sendall(GOOD)
            assert answered(other) == b"HTTP/1.1 200 OK"


def test_a_large_body_passes_whole() -> None:
    """A large body arrives complete, at the speed of a local network."""
    with listening(stall_s=5) as (port, _):
        url = f"http://127.0.0.1:{port}/"
        assert httpx.post(url, content=b"x" * MAX_BODY_BYTES, timeout=60).status_code == 200
        assert httpx.post(url, content=b"x" * (MAX_BODY_BYTES + 1), timeout=60).status_code == 413
