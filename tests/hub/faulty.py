"""A proxy in front of a Hub that answers late, short, wrong or not at all, as a test asks."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_PASSED_ON = {"content-length", "content-type", "etag", "location", "link", "content-range", "retry-after"}


@dataclass(kw_only=True)
class Answer:
    """A response on its way to the client; a fault changes it.

    Attributes:
        cut_at: Bytes of the body after which the connection breaks.
        stall_at: Bytes of the body after which nothing comes until the test ends.
        drip_at: Bytes of the body after which only a byte comes now and then.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    cut_at: int | None = None
    stall_at: int | None = None
    drip_at: int | None = None


Fault = Callable[[Answer], None]


def status(code: int, **headers: str) -> Fault:
    """The Hub refuses with this status."""

    def change(answer: Answer) -> None:
        answer.status, answer.body = code, b'{"error": "no"}'
        answer.headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}

    return change


def cut(share: float) -> Fault:
    """The connection breaks after this share of the body."""

    def change(answer: Answer) -> None:
        answer.cut_at = int(len(answer.body) * share)

    return change


def stall(share: float) -> Fault:
    """Nothing more arrives after this share of the body."""

    def change(answer: Answer) -> None:
        answer.stall_at = int(len(answer.body) * share)

    return change


def drip(share: float) -> Fault:
    """After this share of the body, only a byte comes now and then, so that no read times out."""

    def change(answer: Answer) -> None:
        answer.drip_at = int(len(answer.body) * share)

    return change


def flip(answer: Answer) -> None:
    """Flip a bit in the middle of the body."""
    body = bytearray(answer.body)
    body[len(body) // 2] ^= 1
    answer.body = bytes(body)


def login_page(answer: Answer) -> None:
    """A captive portal answers in the place of the Hub."""
    answer.status, answer.body = 200, b"<!DOCTYPE html><title>Welcome to our hotel</title>"
    answer.headers = {"Content-Type": "text/html"}


def unchanged(answer: Answer) -> None:
    """Change nothing."""


_COUNT_TIMEOUT_S = 60
_STALL_S = 200
_DRIP_S = 0.05


@dataclass(kw_only=True)
class Rule:
    """A fault for the next `times` requests whose path contains `part`."""

    part: str
    fault: Fault
    times: int
    method: str = "GET"
    ignore_range: bool = False


@dataclass(kw_only=True)
class Network:
    """The network between client and Hub.

    Attributes:
        endpoint: Where the client finds the Hub behind the proxy.
        requests: Method, path and Range of every request so far.
        sent_bytes: Bytes of bodies sent so far, by path.
        num_connections: Connections that clients have opened.
    """

    endpoint: str
    rules: list[Rule] = field(default_factory=list)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    sent_bytes: dict[str, int] = field(default_factory=dict)
    num_connections: int = 0
    on_request: Callable[[str], None] = lambda path: None
    on_token: Callable[[str | None], None] = lambda token: None
    ended: threading.Event = field(default_factory=threading.Event)
    _counted: threading.Condition = field(default_factory=threading.Condition)
    _num_writing: int = 0

    def when(
        self, part: str, fault: Fault = unchanged, *, times: int = 1, method: str = "GET", ignore_range: bool = False
    ) -> Rule:
        """Apply a fault to the next requests whose path contains `part`."""
        rule = Rule(part=part, fault=fault, times=times, method=method, ignore_range=ignore_range)
        self.rules.append(rule)
        return rule

    def fetched(self, suffix: str) -> int:
        """Bytes sent for paths with this end, including bodies that are being written."""
        with self._counted:
            assert self._counted.wait_for(lambda: self._num_writing == 0, _COUNT_TIMEOUT_S)
        return sum(count for path, count in self.sent_bytes.items() if path.endswith(suffix))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the count while a body is written, as a client that has read it all may ask for the count at once."""
        with self._counted:
            self._num_writing += 1
        try:
            yield
        finally:
            with self._counted:
                self._num_writing -= 1
                self._counted.notify_all()

    def forget(self) -> None:
        """Reset the count."""
        self.requests.clear()
        self.sent_bytes.clear()
        self.num_connections = 0

    def rule_for(self, method: str, path: str) -> Rule | None:
        for rule in self.rules:
            if rule.times and rule.method == method and rule.part in path:
                rule.times -= 1
                return rule
        return None


@contextmanager
def network(upstream: str) -> Iterator[Network]:
    """A proxy in front of the Hub at `upstream`."""
    target = urlsplit(upstream)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    net = Network(endpoint=f"http://127.0.0.1:{server.server_port}")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            net.num_connections += 1
            super().setup()

        def handle_any(self) -> None:
            path = self.path.split("?")[0]
            net.on_request(path)
            net.on_token(self.headers.get("Authorization"))
            net.requests.append((self.command, path, self.headers.get("Range")))
            rule = net.rule_for(self.command, path)
            length = int(self.headers.get("Content-Length") or 0)
            headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
            if rule is not None and rule.ignore_range:
                headers.pop("Range", None)
            connection = http.client.HTTPConnection(target.hostname or "", target.port)
            connection.request(self.command, self.path, self.rfile.read(length) if length else None, headers)
            got = connection.getresponse()
            kept = {k: v for k, v in got.getheaders() if k.lower() in _PASSED_ON or k.lower().startswith("x-")}
            kept = {k: v.replace(upstream, net.endpoint) for k, v in kept.items()}
            answer = Answer(status=got.status, headers=kept, body=got.read())
            connection.close()
            if self.command != "HEAD":
                kept.pop("content-length", None)
            if rule is not None:
                rule.fault(answer)
            self.answer(path, answer)

        def answer(self, path: str, answer: Answer) -> None:
            self.send_response(answer.status)
            for key, value in answer.headers.items():
                self.send_header(key, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            stop = min(x for x in (answer.cut_at, answer.stall_at, answer.drip_at, len(answer.body)) if x is not None)
            with net.writing():
                self.wfile.write(answer.body[:stop])
                net.sent_bytes[path] = net.sent_bytes.get(path, 0) + stop
            for at in range(stop, len(answer.body) if answer.drip_at is not None else stop):
                if not net.ended.wait(_DRIP_S):
                    self.wfile.write(answer.body[at : at + 1])
            if answer.stall_at is not None:
                net.ended.wait(_STALL_S)
            if stop < len(answer.body):
                self.close_connection = True

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server.RequestHandlerClass = Handler
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign] - clients that go away are part of the tests
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield net
    finally:
        net.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
