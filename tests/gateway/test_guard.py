"""Access to a gateway: keys on every route, Host, Origin, and the addresses that it may listen at."""

from __future__ import annotations

import base64

import httpx
import pytest

from shardhub.errors import AddressError, FormatError, UsageError
from shardhub.gateway.keys import digest_of, new_key, read_keys
from shardhub.gateway.server import check_host
from shardhub.gateway.settings import GatewaySettings
from tests.gateway.serving import GatewayProcess

PAGE = "https://page.example"
PROBES = [("get", "/health/live"), ("get", "/health/ready")]
# Connections are not kept, because gateways come and go.
WEB = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def keys(key_file):
    """A file with two keys."""
    return [new_key(key_file), new_key(key_file)]


@pytest.fixture(scope="module")
def guarded(served, key_file, keys):
    """A gateway that requires a key and allows one page's origin."""
    process = GatewayProcess(
        served.pipeline,
        served.addresses,
        ("--api-key-file", str(key_file), "--cors-origin", PAGE, "--model-name", "tiny"),
        env={"SHARDHUB_API_KEY": "one-from-the-environment"},
    )
    try:
        yield process
    finally:
        log = process.errors()
        assert process.stop() == 0
        assert not any(key in log for key in keys)


def routes(guarded, key):
    schema = WEB.get(f"{guarded.url}/openapi.json", headers={"Authorization": f"Bearer {key}"}).json()
    operations = [(method, path) for path, methods in schema["paths"].items() for method in methods]
    assert len(operations) > 10
    return [
        *operations,
        ("get", "/docs"),
        ("get", "/openapi.json"),
        ("get", "/"),
        ("get", "/nowhere"),
        ("options", "/"),
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic " + base64.b64encode(b"a:wrong").decode()},
        {"Authorization": "Basic %%%"},
        {"Authorization": "Digest x"},
        {"x-api-key": "wrong"},
    ],
)
def test_no_route_answers_without_a_key(guarded, keys, headers) -> None:
    """No route answers without a key, whether the OpenAPI file has it or not; probes get the bare status."""
    with httpx.Client(base_url=guarded.url, timeout=60) as client:
        for method, path in routes(guarded, keys[0]):
            if (method, path) in PROBES and not headers:
                continue
            answer = client.request(method, path.replace("{name}", "tiny"), headers=headers)
            assert answer.status_code == 401, (method, path)
            error = answer.json()["error"]
            assert "API key" in error if path.startswith("/api/") else error["code"] == "invalid_api_key"
            assert "WWW-Authenticate" in answer.headers


def test_probes_without_a_key_get_the_status_only(guarded, keys) -> None:
    """Supervisors probe without a key: they learn whether requests are answered, and no name of a model or node."""
    for _, path in PROBES:
        answer = WEB.get(f"{guarded.url}{path}")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert (
        WEB.get(f"{guarded.url}/health/ready", headers={"Authorization": f"Bearer {keys[0]}"}).json()["model"] == "tiny"
    )
    assert WEB.get(f"{guarded.url}/health/ready", headers={"Host": "evil.example"}).status_code == 403
    assert WEB.head(f"{guarded.url}/health/ready").status_code == 401


def test_each_key_opens(guarded, keys) -> None:
    """A key of the file or the environment works as bearer token, in Anthropic's header, and as a password."""
    basic = base64.b64encode(f"me:{keys[1]}".encode()).decode()
    for headers in (
        {"Authorization": f"Bearer {keys[0]}"},
        {"authorization": f"bearer {keys[1]}"},
        {"x-api-key": keys[0]},
        {"Authorization": f"Basic {basic}"},
        {"Authorization": "Bearer one-from-the-environment"},
    ):
        assert WEB.get(f"{guarded.url}/v1/models", headers=headers).status_code == 200


def test_keys_share_no_prefix(guarded, keys) -> None:
    """One key's cached prefixes are not used for another key, so that timing reveals nothing."""

    def cached(key):
        body = {"prompt": "KEYS" * 40, "max_tokens": 1}
        answer = WEB.post(f"{guarded.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(keys[0]) == 0
    assert cached(keys[0]) > 100
    assert cached(keys[1]) == 0


def test_an_empty_bearer_does_where_no_key_is_set(gateway) -> None:
    """Without a configured key an empty bearer is accepted, as some clients always send one."""
    for value in ("Bearer", "Bearer anything"):
        answer = WEB.get(f"{gateway.url}/v1/models", headers={"Authorization": value})
        assert answer.status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.9", "", "[::"])
def test_other_hosts_are_refused(gateway, host) -> None:
    """A Host that is not the gateway's is refused, as in DNS rebinding."""
    answer = WEB.get(f"{gateway.url}/health", headers={"Host": host})
    assert answer.status_code in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]", "LOCALHOST:80"])
def test_loopback_has_its_names(gateway, host) -> None:
    """Loopback names are accepted with any port, as a tunnel may change it."""
    assert WEB.get(f"{gateway.url}/health", headers={"Host": host}).status_code == 200


def test_pages_of_other_origins_may_not_post(gateway) -> None:
    """Other origins may not post, and no header lets them read; the gateway's own page may post."""
    url = f"{gateway.url}/v1/completions"
    body = {"prompt": "A", "max_tokens": 1}
    for origin in ("https://evil.example", "null", gateway.url.replace("http", "https") + "0"):
        assert WEB.post(url, json=body, headers={"Origin": origin}).status_code == 403
    own = WEB.post(url, json=body, headers={"Origin": gateway.url})
    assert own.status_code == 200
    assert "Access-Control-Allow-Origin" not in own.headers
    asked = WEB.options(url, headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"})
    assert asked.status_code == 403


def test_a_page_that_is_known_may(guarded, keys) -> None:
    """An allowed page gets CORS headers in the preflight, before it sends a key, and in each answer."""
    url = f"{guarded.url}/v1/completions"
    asked = WEB.options(
        url,
        headers={
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        },
    )
    assert asked.status_code == 204
    assert asked.headers["Access-Control-Allow-Origin"] == PAGE
    assert "authorization" in asked.headers["Access-Control-Allow-Headers"]
    headers = {"Origin": PAGE, "Authorization": f"Bearer {keys[0]}"}
    answer = WEB.post(url, json={"prompt": "A", "max_tokens": 1}, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE


def test_a_gateway_off_loopback_needs_a_key_or_a_word() -> None:
    """Listening off loopback requires a key or the explicit option."""
    with pytest.raises(AddressError, match="API key"):
        check_host(GatewaySettings(host="0.0.0.0"))
    check_host(GatewaySettings(host="0.0.0.0", insecure_lan=True))
    check_host(GatewaySettings(host="127.0.0.1"))


def test_keys_are_kept_as_digests(tmp_path, monkeypatch) -> None:
    """A file with a plain key, an empty file and a short key are refused."""
    monkeypatch.delenv("SHARDHUB_API_KEY", raising=False)
    file = tmp_path / "keys"
    key = new_key(file)
    assert key not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    assert read_keys(file).find(key) == digest_of(key)
    assert read_keys(file).find(key + "x") is None
    file.write_text(f"# ours\nsha256:{digest_of(key)} laptop\n{key}\n")
    with pytest.raises(FormatError, match="line 3"):
        read_keys(file)
    file.write_text("# none\n")
    with pytest.raises(FormatError, match="does not contain a key"):
        read_keys(file)
    with pytest.raises(UsageError):
        read_keys(tmp_path / "absent")
    monkeypatch.setenv("SHARDHUB_API_KEY", "short")
    with pytest.raises(UsageError, match="too short"):
        read_keys(None)
