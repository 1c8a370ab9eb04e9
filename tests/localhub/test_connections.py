"""Clients that hold connections to the Hub and send or read nothing do not block others."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from contextlib import ExitStack

import httpx2
import pytest
from huggingface_hub import HfApi

from shardhub.localhub import bodies, server
from shardhub.localhub.server import RunningHub, running_hub
from tests.localhub.test_refusals import Raw
from tests.waiting import wait_until

HALF = b"GET /api/models HTTP/1.1\r\nHost: loc"
BODILESS = b"POST /api/validate-yaml HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"


def connected(hub: RunningHub) -> socket.socket:
    return socket.create_connection(("127.0.0.1", hub.port), timeout=60)


@pytest.mark.parametrize("sent", [b"", HALF, BODILESS], ids=["silent", "half a header", "no body"])
def test_idle_connections_lock_nobody_out(tmp_path, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """With more idle connections than the limit, other clients list and create repos as before."""
    monkeypatch.setattr(server, "_MAX_CONNECTIONS", 40)
    with running_hub(tmp_path / "hub") as hub, ExitStack() as stack:
        for _ in range(100):
            connection = stack.enter_context(connected(hub))
            with contextlib.suppress(OSError):  # let go already
                connection.sendall(sent)
        headers = {"Authorization": f"Bearer {hub.token('ann')}"}
        for name in ("a", "b"):
            made = httpx2.post(f"{hub.endpoint}/api/repos/create", json={"name": name}, headers=headers, timeout=60)
            assert made.status_code == 200
        listed = httpx2.get(f"{hub.endpoint}/api/models", headers=headers, timeout=60).json()
        assert [repo["id"] for repo in listed] == ["ann/b", "ann/a"]


def test_a_header_that_does_not_come_ends_its_connection(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub closes a connection whose request headers do not arrive."""
    monkeypatch.setattr(server, "_STALL_S", 0.2)
    with running_hub(tmp_path / "hub") as hub, connected(hub) as connection:
        connection.sendall(HALF)
        assert connection.recv(1) == b""


def test_an_upload_over_a_slow_line_goes_on_as_long_as_it_comes(
    hub: RunningHub, api: HfApi, repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload at the minimum rate is never cut off, however long it takes; one below it is."""
    monkeypatch.setattr(bodies, "STALL_TIMEOUT_S", 0.5)
    raw = Raw(hub.endpoint, str(api.token))
    content = bytes(6000)
    digest = hashlib.sha256(content).hexdigest()
    target = raw.upload_url(repo, digest, len(content)).removeprefix(hub.endpoint)
    head = f"PUT {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()

    def put(piece_bytes: int) -> bytes:
        """The status line of an upload whose body is sent in pieces of this size, ten a second."""
        ended = threading.Event()
        with connected(hub) as connection:
            connection.sendall(head)

            def send() -> None:
                with contextlib.suppress(OSError):
                    for start in range(0, len(content), piece_bytes):
                        if ended.wait(0.1):
                            return
                        connection.sendall(content[start : start + piece_bytes])

            sender = threading.Thread(target=send)
            sender.start()
            try:
                with connection.makefile("rb") as answer:
                    return answer.readline()
            finally:
                ended.set()
                sender.join()

    assert put(1).startswith(b"HTTP/1.1 408")
    assert put(300).startswith(b"HTTP/1.1 200")


def test_malformed_requests_do_not_fill_the_log(hub: RunningHub, caplog: pytest.LogCaptureFixture) -> None:
    """Of many malformed requests, only the first is logged."""
    for _ in range(20):
        with connected(hub) as connection:
            connection.sendall(b"\x16\x03\x01 what is this\r\n\r\n")
            while connection.recv(4096):
                pass
    wait_until(lambda: caplog.records)
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
