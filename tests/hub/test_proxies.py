"""Proxies of the environment: used for the Hub's requests, and never between a user's own machines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from shardhub.errors import HubUnreachable, UsageError
from shardhub.hub.client import hub_api, make_http_client
from shardhub.hub.failures import hub_failures
from shardhub.hub.proxies import is_excepted, is_own_network, proxy_for, shown

PROXY = "http://proxy.example:3128"
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """A server that answers with the target of the request line, which is a whole URL if a proxy was meant."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.path.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.9.9.9",
        "localhost",
        "hub.localhost",
        "[::1]",
        "::1",
        "10.77.0.1",
        "172.16.0.9",
        "192.168.1.7",
        "169.254.3.4",
        "100.100.1.2",
        "fe80::1%en0",
        "fd00::1",
        "0.0.0.0",
        "studio",
        "studio.local",
        "Studio.LOCAL.",
    ],
)
def test_own_network_is_never_behind_a_proxy(host: str) -> None:
    """Loopback, private addresses and local names are reached directly, whatever the environment says."""
    assert is_own_network(host)
    assert proxy_for("http", host, 8090, {"http": PROXY, "https": PROXY, "all": PROXY}) is None


@pytest.mark.parametrize("host", ["huggingface.co", "8.8.8.8", "2606:4700::1111", "hub.corp.example", "local.example"])
def test_other_hosts_go_through_the_proxy(host: str) -> None:
    """The proxy for the URL's scheme is used, else the one for all schemes, else none."""
    assert proxy_for("https", host, 443, {"https": PROXY, "all": "socks5://other"}) == PROXY
    assert proxy_for("https", host, 443, {"http": PROXY, "all": "socks5://other"}) == "socks5://other"
    assert proxy_for("https", host, 443, {"http": PROXY, "https": "", "all": " "}) is None


@pytest.mark.parametrize(
    ("exceptions", "is_named"),
    [
        ("huggingface.co", True),
        (".huggingface.co", True),
        ("*.huggingface.co", True),
        ("other.example, huggingface.co", True),
        ("other.example huggingface.co", True),
        ("huggingface.co:443", True),
        ("huggingface.co:8443", False),
        ("*", True),
        ("gingface.co", False),
        ("", False),
        (",,", False),
        ("::::,[", False),
    ],
)
def test_no_proxy_names_hosts(exceptions: str, is_named: bool) -> None:
    """NO_PROXY names hosts and their subdomains, with or without a port."""
    assert is_excepted("huggingface.co", 443, exceptions) is is_named


def test_no_proxy_names_networks() -> None:
    """NO_PROXY takes addresses and networks, IPv4 and IPv6."""
    assert is_excepted("8.8.8.8", 80, "8.8.0.0/16")
    assert is_excepted("2606:4700::1", 80, "2606:4700::/32")
    assert is_excepted("[2606:4700::1]", 80, "[2606:4700::1]")
    assert not is_excepted("8.9.8.8", 80, "8.8.0.0/16,8.8")


@pytest.mark.parametrize("value", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "foo://x", "http://[", ":::", "x y"])
def test_loopback_is_reached_whatever_the_environment_says(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """A Hub on loopback is reached with dead, foreign and malformed proxies set, in upper and lower case."""
    for name in VARIABLES[:3]:
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.upper(), value)
    with make_http_client() as client:
        assert client.get(f"http://127.0.0.1:{server.server_port}/api/whoami").text == "/api/whoami"


def test_public_hub_goes_through_the_proxy(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public host is reached through the proxy that is set when the request is sent."""
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{server.server_port}")
    with make_http_client() as client:
        assert client.get("http://hub.example/api/models").text == "http://hub.example/api/models"


def test_socks_without_its_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a SOCKS proxy needs a missing package, the message names both, without the password."""
    monkeypatch.setitem(__import__("sys").modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5h://user:secret@127.0.0.1:9")
    with make_http_client() as client, pytest.raises(UsageError, match="speaks SOCKS") as caught:
        client.get("https://hub.example/")
    assert "socksio" in caught.value.hint
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["foo://proxy:1", "http://[", "http://", "ftp://a"])
def test_malformed_proxy_is_reported(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A malformed proxy is reported as a mistake in the environment."""
    monkeypatch.setenv("https_proxy", value)
    with make_http_client() as client, pytest.raises(UsageError, match=r"The proxy .* cannot be used"):
        client.get("https://hub.example/")


def test_unreachable_hub_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for an unreachable Hub names the proxy in use."""
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:9")
    api = hub_api("https://hub.example")
    with pytest.raises(HubUnreachable) as caught, hub_failures("asking", api=api), make_http_client() as client:
        client.get("https://hub.example/")
    assert "through the proxy http://127.0.0.1:9" in caught.value.why
    assert "secret" not in str(caught.value)


def test_password_of_a_proxy_is_not_shown() -> None:
    """A proxy is shown by scheme, host and port."""
    assert shown("http://me:p@ss@proxy.example:3128/") == "http://proxy.example:3128"
    assert shown("proxy.example:3128") == "proxy.example:3128"
