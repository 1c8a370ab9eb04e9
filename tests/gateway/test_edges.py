"""HTTP edge cases: what proxies, load balancers, probes and hostile clients send, byte by byte."""

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from dataclasses import dataclass, field

import pytest

from shardhub.gateway.paths import plain_path, split_target
from shardhub.gateway.request_body import MAX_BODY_BYTES

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
BODY = json.dumps(CHAT).encode()
JSON = "Content-Type: application/json"
# Of an answer, however slow the machine; what hangs takes longer.
ANSWER_S = 30
RAW_DEFLATE = zlib.compressobj(wbits=-15)
RAW = RAW_DEFLATE.compress(BODY) + RAW_DEFLATE.flush()
BOMB = gzip.compress(b" " * (64 << 20), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A request: its line, headers and body."""

    line: str = "POST /v1/chat/completions HTTP/1.1"
    headers: tuple[str, ...] = ("Host: localhost", JSON)
    body: bytes = BODY
    with_length: bool = True
    expected: tuple[int, ...] = (200,)
    shows: dict[str, str] = field(default_factory=dict)


def get(path: str, *headers: str, version: str = "1.1", method: str = "GET", expected: int = 200, **more) -> Sent:
    host = () if version == "1.0" else ("Host: localhost",)
    line = f"{method} {path} HTTP/{version}"
    return Sent(line=line, headers=(*host, *headers), body=b"", with_length=False, expected=(expected,), **more)


def post(*headers: str, path: str = "/v1/chat/completions", body: bytes = BODY, expected: int = 200, **more) -> Sent:
    line = f"POST {path} HTTP/1.1"
    return Sent(line=line, headers=("Host: localhost", *headers), body=body, expected=(expected,), **more)


def chunked(body: bytes, size: int = 7) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


CASES = {
    # Paths.
    "a trailing slash": post(JSON, path="/v1/chat/completions/"),
    "doubled slashes": post(JSON, path="//v1//chat//completions"),
    "no /v1": post(JSON, path="/chat/completions"),
    "two /v1": post(JSON, path="/v1/v1/chat/completions"),
    "models without /v1": get("/models"),
    "one model without /v1": get("/models/tiny"),
    "one model, and a slash": get("/v1/models/tiny/"),
    "a query": get("/v1/models?limit=20&after_id=x"),
    "messages with a /v1 too many": post(JSON, path="/v1/v1/messages"),
    "tags under /v1": get("/v1/api/tags"),
    "tokenize under /v1": post(JSON, path="/v1/tokenize", body=b'{"prompt": "a"}'),
    "another's path": get("/v2/models", expected=404),
    "dots": get("/page/../../../../etc/passwd", expected=404),
    "encoded dots": get("/page/%2e%2e/%2e%2e/etc/passwd", expected=404),
    "a NUL in a path": get("/page/%00", expected=404),
    "what is not UTF-8 in a path": get("/v1/models/%ff%fe", expected=404),
    "a long path": get("/v1/models/" + "a" * 8000, expected=404),
    "a whole URL": get("http://localhost:8080/health"),
    "a whole URL in upper case": get("HTTP://LOCALHOST/health"),
    "a whole URL of elsewhere": get("http://evil.example/health", expected=403),
    "a whole URL, with another Host": Sent(
        line="GET http://localhost/health HTTP/1.1",
        headers=("Host: evil.example",),
        body=b"",
        with_length=False,
        expected=(403,),
    ),
    "a broken URL": get("http://[::1/health", expected=403),
    # Probes.
    "HTTP/1.0 without Host": get("/health", version="1.0"),
    "HTTP/1.0 with Host": get("/health", "Host: localhost", version="1.0"),
    "HTTP/1.0 with another Host": get("/health", "Host: evil.example", version="1.0", expected=403),
    "HTTP/1.0 of a page": get("/health", "Origin: null", version="1.0", expected=403),
    "HTTP/1.0 with an empty Host": get("/health", "Host:", version="1.0", expected=403),
    "HTTP/1.1 without Host": Sent(
        line="GET /health HTTP/1.1", headers=(), body=b"", with_length=False, expected=(400,)
    ),
    "two Hosts": get("/health", "Host: evil.example", expected=400),
    "an upper-case host": Sent(
        line="GET /health HTTP/1.1", headers=("HOST: LOCALHOST:80",), body=b"", with_length=False
    ),
    "a host with a dot": Sent(line="GET /health HTTP/1.1", headers=("Host: localhost.",), body=b"", with_length=False),
    "HEAD": get("/health", method="HEAD"),
    "HEAD of the page": get("/", method="HEAD"),
    "HEAD of models": get("/v1/models", method="HEAD"),
    "HEAD of metrics": get("/metrics", method="HEAD"),
    "HEAD by HTTP/1.0": get("/", method="HEAD", version="1.0"),
    "HEAD of a chat": get("/v1/chat/completions", method="HEAD", expected=405),
    "OPTIONS": get("/v1/chat/completions", method="OPTIONS", expected=204, shows={"allow": "POST, OPTIONS"}),
    "OPTIONS of models": get("/v1/models", method="OPTIONS", expected=204, shows={"allow": "GET, OPTIONS"}),
    "OPTIONS of all": get("*", method="OPTIONS", expected=204),
    "OPTIONS of nothing": get("/nowhere", method="OPTIONS", expected=404),
    "a preflight of a stranger": get(
        "/v1/models",
        "Origin: https://evil.example",
        "Access-Control-Request-Method: GET",
        method="OPTIONS",
        expected=403,
    ),
    "GET of a chat": get("/v1/chat/completions", expected=405, shows={"allow": "POST"}),
    "PUT": get("/v1/models", method="PUT", expected=405),
    "DELETE": get("/v1/models", method="DELETE", expected=405),
    "TRACE": get("/", method="TRACE", expected=405),
    "CONNECT": get("localhost:443", method="CONNECT", expected=404),
    "a method of one's own": get("/", method="BREW", expected=405),
    "healthz": get("/healthz"),
    "livez": get("/livez"),
    "readyz": get("/readyz"),
    "ping": get("/ping"),
    "version": get("/version"),
    "a probe that says it keeps the connection": get("/health", "Connection: keep-alive", version="1.0"),
    "what a proxy adds": get(
        "/health",
        "X-Forwarded-For: 10.0.0.1",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Proto: https",
        "Forwarded: for=1.2.3.4;host=evil.example",
        "Via: 1.1 proxy",
    ),
    "an upgrade to HTTP/2": get("/health", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA"),
    "an upgrade to a web socket": get("/health", "Connection: Upgrade", "Upgrade: websocket"),
    "a range": get("/v1/models", "Range: bytes=0-1"),
    # Content types.
    "JSON with a charset": post("Content-Type: application/json; charset=utf-8"),
    "JSON of one's own": post("Content-Type: application/vnd.api+json"),
    "a type in upper case": post("CONTENT-TYPE: APPLICATION/JSON"),
    "no type": post(),
    "an empty type": post("Content-Type:"),
    "no type, from a page": post("Origin: http://localhost", expected=400),
    "no type, from a browser": post("Sec-Fetch-Site: cross-site", expected=400),
    "text": post("Content-Type: text/plain", expected=400),
    "a form": post("Content-Type: application/x-www-form-urlencoded", expected=400),
    "a form, as Ollama's examples have it": post(
        "Content-Type: application/x-www-form-urlencoded", path="/api/show", body=b'{"model": "tiny"}'
    ),
    "the same from a page": post(
        "Content-Type: text/plain",
        "Origin: http://localhost",
        path="/api/show",
        body=b'{"model": "tiny"}',
        expected=400,
    ),
    "the same from elsewhere": post(
        "Content-Type: text/plain", "Origin: https://evil.example", path="/api/show", body=b"{}", expected=403
    ),
    "wanting a stream": post(JSON, "Accept: text/event-stream"),
    "wanting HTML": post(JSON, "Accept: text/html"),
    # Bodies.
    "a byte order mark": post(JSON, body=b"\xef\xbb\xbf" + BODY),
    "UTF-16": post(JSON, body=json.dumps(CHAT).encode("utf-16")),
    "blanks around": post(JSON, body=b"\r\n  " + BODY + b"\r\n"),
    "Latin-1": post(JSON, body=b'{"prompt": "\xe9"}', path="/v1/completions", expected=400),
    "gzip": post(JSON, "Content-Encoding: gzip", body=gzip.compress(BODY)),
    "GZIP": post(JSON, "Content-Encoding: GZIP", body=gzip.compress(BODY)),
    "deflate": post(JSON, "Content-Encoding: deflate", body=zlib.compress(BODY)),
    "deflate without its header": post(JSON, "Content-Encoding: deflate", body=RAW),
    "identity": post(JSON, "Content-Encoding: identity"),
    "gzip that is not": post(JSON, "Content-Encoding: gzip", expected=400),
    "gzip cut short": post(JSON, "Content-Encoding: gzip", body=gzip.compress(BODY)[:-9], expected=400),
    "gzip and something behind": post(JSON, "Content-Encoding: gzip", body=gzip.compress(BODY) + b"x", expected=400),
    "gzip of nothing": post(JSON, "Content-Encoding: gzip", body=b"", expected=400),
    "a bomb": post(JSON, "Content-Encoding: gzip", body=BOMB, expected=413),
    "brotli": post(JSON, "Content-Encoding: br", expected=415, shows={"accept-encoding": "gzip, deflate"}),
    "gzip twice": post(JSON, "Content-Encoding: gzip, gzip", expected=415),
    "chunks": Sent(
        headers=("Host: localhost", JSON, "Transfer-Encoding: chunked"), body=chunked(BODY), with_length=False
    ),
    "gzip in chunks": Sent(
        headers=("Host: localhost", JSON, "Transfer-Encoding: chunked", "Content-Encoding: gzip"),
        body=chunked(gzip.compress(BODY)),
        with_length=False,
    ),
    "chunks of no number": Sent(
        headers=("Host: localhost", JSON, "Transfer-Encoding: chunked"),
        body=b"zz\r\n{}\r\n0\r\n\r\n",
        with_length=False,
        expected=(400,),
    ),
    "another transfer encoding": Sent(
        headers=("Host: localhost", JSON, "Transfer-Encoding: gzip"), with_length=False, expected=(501,)
    ),
    "both lengths": Sent(
        headers=("Host: localhost", JSON, "Transfer-Encoding: chunked", f"Content-Length: {len(BODY)}"),
        body=chunked(BODY),
        with_length=False,
        expected=(200, 400),
    ),
    "a wish to go on": post(JSON, "Expect: 100-continue"),
    "two lengths": post(JSON, "Content-Length: 3", expected=400),
    "a length of no number": Sent(
        headers=("Host: localhost", JSON, "Content-Length: many"), with_length=False, expected=(400,)
    ),
    "a negative length": Sent(
        headers=("Host: localhost", JSON, "Content-Length: -1"), with_length=False, expected=(400,)
    ),
    "a huge length": Sent(
        headers=("Host: localhost", JSON, f"Content-Length: {MAX_BODY_BYTES * 9}"), with_length=False, expected=(413,)
    ),
    "a body with GET": Sent(line="GET /v1/models HTTP/1.1"),
    # Headers.
    "a long header": get("/health", "X-Long: " + "a" * 20_000),
    "a header beyond the limit": get("/health", "X-Long: " + "a" * 200_000, expected=431),
    "many headers": get("/health", *(f"X-{index}: y" for index in range(500))),
    "a header without a colon": get("/health", "nonsense", expected=400),
    "a header with a NUL": get("/health", "X-A: a\0b", expected=400),
    "a folded header": get("/health", "X-A: a\r\n b"),
    "a request id with a line": get("/health", "X-Request-Id: a b"),
    "a key where none is needed": get("/v1/models", "Authorization: Bearer x"),
    "a key that is not text": get("/v1/models", "Authorization: Basic \xff\xfe"),
    "an odd origin": post(JSON, "Origin: http://[", expected=403),
    "a page of elsewhere": post(JSON, "Origin: https://evil.example", expected=403),
    "HTTP/2 without asking": Sent(
        line="PRI * HTTP/2.0", headers=(), body=b"SM\r\n\r\n", with_length=False, expected=(400, 505)
    ),
    "HTTP/3": Sent(line="GET / HTTP/3.0", body=b"", with_length=False, expected=(400, 505)),
    "not HTTP": Sent(line="\x16\x03\x01\x02\x00\x01", headers=(), body=b"", with_length=False, expected=(400,)),
}


def exchange(url: str, sent: Sent) -> Answer:
    """Send bytes on a connection of its own, and read the whole answer."""
    host, port = url.removeprefix("http://").split(":")
    length = (f"Content-Length: {len(sent.body)}",) if sent.with_length else ()
    head = "\r\n".join((sent.line, *sent.headers, *length)) + "\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=ANSWER_S) as connection:
        connection.sendall(head.encode("latin-1") + sent.body)
        answer = connection.makefile("rb")
        while (status := int(answer.readline().split()[1])) == 100:
            answer.readline()
        headers = {}
        while line := answer.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        is_bare = status == 204 or sent.line.startswith("HEAD")
        body = b"" if is_bare else answer.read(int(headers["content-length"]))
    return Answer(status=status, headers=headers, body=body)


@pytest.mark.parametrize("name", CASES)
def test_odd_requests_get_the_right_status(gateway, name) -> None:
    """Each request is answered quickly, refusals as JSON with the reason, and the gateway stays alive."""
    sent = CASES[name]
    began_at = time.monotonic()
    answer = exchange(gateway.url, sent)
    assert answer.status in sent.expected, answer.body
    assert time.monotonic() - began_at < ANSWER_S
    for header, value in sent.shows.items():
        assert answer.headers[header] == value
    if answer.status >= 400 and answer.body:
        assert json.loads(answer.body)["error"]
    assert exchange(gateway.url, get("/health/live")).status == 200


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1//models", "/v1/models"),
        ("/v1/v1/models", "/v1/models"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/models/a/b", "/v1/models/a/b"),
        ("/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/modelsx", "/modelsx"),
        ("/v1/api/chat", "/api/chat"),
        ("/v1/health", "/health"),
        ("/healthz", "/health"),
        ("/page/js/main.js", "/page/js/main.js"),
    ],
)
def test_paths_are_brought_into_their_form(sent, expected) -> None:
    """Doubled and trailing slashes are removed, and a missing or doubled /v1 is corrected."""
    assert plain_path(sent) == expected


def test_whole_urls_have_a_host_of_their_own() -> None:
    """The host of a whole URL is checked as the Host header is."""
    assert split_target("/v1/models") == (None, "/v1/models")
    assert split_target("http://a.example:1/x") == ("a.example:1", "/x")
    assert split_target("https://a.example") == ("a.example", "/")
    assert split_target("http://[") == ("", "/")
