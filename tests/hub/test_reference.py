"""Names on the command line, the client's errors, and retries."""

from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import errors as hub_errors

from shardhub.errors import AccessError, Conflict, HubRefused, HubUnreachable, NotFound, ShardhubError, UsageError
from shardhub.hub.client import hub_api, make_http_client, token_source
from shardhub.hub.failures import Circumstances, explain, hub_failures, table
from shardhub.hub.reference import Reference, parse_reference
from shardhub.hub.retry import is_passing, wait_before, with_retries
from tests.ports import kept

API = hub_api("http://127.0.0.1:9", "hf_secret")


def answered(code: int, **headers: str) -> hub_errors.HfHubHTTPError:
    request = httpx2.Request("GET", "http://127.0.0.1:9/api/models/a/b?sign=secret")
    response = httpx2.Response(code, headers=headers, request=request)
    return hub_errors.HfHubHTTPError(f"{code} for {request.url}", response=response)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", Reference(repo="org/name")),
        ("org/name@v1.0", Reference(repo="org/name", revision="v1.0")),
        ("org/name@refs/pr/1", Reference(repo="org/name", revision="refs/pr/1")),
        ("org/name@_own/v1+local", Reference(repo="org/name", revision="_own/v1+local")),
        ("https://hf.co/org/name/tree/feature%2Fx", Reference(repo="org/name", revision="feature/x")),
        ("https://hf.co/org/name/commit/0123456789", Reference(repo="org/name", revision="0123456789")),
        ("./org/name", Path("org/name")),
        ("/org/name", Path("/org/name")),
        ("folder", Path("folder")),
        ("a/b/c", Path("a/b/c")),
        ("..", Path("..")),
        ("", Path()),
    ],
)
def test_reference_or_folder(text: str, expected: Reference | Path) -> None:
    """Two plain words with a slash are a repo, unless such a folder exists; everything else is a folder."""
    assert parse_reference(text) == expected


def test_folder_that_is_there_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An existing folder wins over a repo of the same name; a commit is recognised as one."""
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_reference("org/name") == Path("org/name")
    assert Reference(repo="a/b", revision="0" * 40).commit == "0" * 40
    assert Reference(repo="a/b", revision="main").commit is None


@pytest.mark.parametrize("revision", ["", "..", "a..b", "-x", "a b", "a\0", "x" * 300, "a@b", "%2e"])
def test_strange_revisions_are_refused(revision: str) -> None:
    """A revision that has another meaning in a URL or a path is refused."""
    with pytest.raises(UsageError, match="not the name of a revision"):
        parse_reference(f"org/name@{revision}")


def test_every_http_error_of_the_client_has_a_row() -> None:
    """The table has a row for each subclass of HfHubHTTPError, so that an upgrade of the client shows new ones."""
    kinds = {
        kind
        for _, kind in inspect.getmembers(hub_errors, inspect.isclass)
        if issubclass(kind, hub_errors.HfHubHTTPError)
    }
    assert len(kinds) > 8
    assert kinds <= table().keys()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (answered(401), AccessError),
        (answered(403), AccessError),
        (answered(404), NotFound),
        (answered(400), HubRefused),
        (answered(413), HubRefused),
        (answered(409), Conflict),
        (answered(412), Conflict),
        (answered(429), HubUnreachable),
        (answered(503), HubUnreachable),
        (hub_errors.GatedRepoError("x", response=answered(403).response), AccessError),
        (hub_errors.RepositoryNotFoundError("x", response=answered(404).response), NotFound),
        (hub_errors.RevisionNotFoundError("x", response=answered(404).response), NotFound),
        (hub_errors.HFValidationError("x"), UsageError),
        (hub_errors.OfflineModeIsEnabled("x"), HubUnreachable),
        (httpx2.ConnectError("x"), HubUnreachable),
        (httpx2.ReadTimeout("x"), HubUnreachable),
        (httpx2.ConnectError("CERTIFICATE_VERIFY_FAILED"), HubUnreachable),
        (ConnectionResetError("x"), HubUnreachable),
        (json.JSONDecodeError("x", "<html>", 0), HubUnreachable),
    ],
)
def test_errors_become_ours(error: Exception, expected: type[ShardhubError]) -> None:
    """Each error becomes ours by its row; the message says what happened, without URL or token."""
    explained = explain(error, Circumstances(what="reading a/b", repo="a/b", api=API))
    assert type(explained) is expected
    assert explained.what.endswith((".", "?"))
    assert "secret" not in str(explained)


def test_other_errors_pass() -> None:
    """Our own errors are not attributed to the Hub."""
    with pytest.raises(KeyError), hub_failures("x", api=API):
        raise KeyError
    with pytest.raises(Conflict), hub_failures("x", api=API):
        raise Conflict("ours")


def test_token_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The source of a token is reported, in the client's own order."""
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert token_source(API) == "the token given to this command"
    assert token_source(hub_api("http://h")) == "no token"
    (tmp_path / "token").write_text("hf_x")
    assert "hf auth login" in token_source(hub_api("http://h"))
    monkeypatch.setenv("HF_TOKEN", "hf_y")
    assert token_source(hub_api("http://h")) == "the token in HF_TOKEN"


def test_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_ENDPOINT is obeyed whenever it is set; malformed values are refused."""
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.lan:8090/")
    assert hub_api().endpoint == "http://hub.lan:8090"
    monkeypatch.setenv("HF_ENDPOINT", "hub.lan")
    with pytest.raises(UsageError, match="not the URL of a Hub"):
        hub_api()


class Calls:
    """A call that fails a number of times, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.num = 0
        self.waited: list[float] = []

    def __call__(self) -> str:
        self.num += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_retries_until_it_works() -> None:
    """Busy answers and broken connections are retried; each wait is reported."""
    calls, said = Calls(answered(503), httpx2.ReadTimeout("x"), answered(429)), []
    assert with_retries(calls, what="reading a/b", sleep=calls.waited.append, notice=said.append) == "done"
    assert len(calls.waited) == len(said) == 3
    assert said[0].startswith("reading a/b: the Hub answered 503, trying again in")


def test_retries_end() -> None:
    """At most five tries and four waits; permanent errors are not retried."""
    calls = Calls(*[answered(500)] * 9)
    with pytest.raises(hub_errors.HfHubHTTPError):
        with_retries(calls, what="x", sleep=calls.waited.append)
    assert (calls.num, len(calls.waited)) == (5, 4)
    for error in (answered(404), answered(412), KeyError(), httpx2.ConnectError("CERTIFICATE_VERIFY_FAILED")):
        calls = Calls(error)
        with pytest.raises(type(error)):
            with_retries(calls, what="x", sleep=calls.waited.append)
        assert calls.num == 1


def test_only_one_side_retries(caplog: pytest.LogCaptureFixture) -> None:
    """A listing, which the client would repeat by itself in each of our tries, is asked for once a try."""
    waited: list[float] = []
    with kept() as port:
        api = hub_api(f"http://127.0.0.1:{port}", "hf_secret")

        def ask() -> list[object]:
            return list(api.list_models())

        with pytest.raises(httpx2.TransportError) as caught:
            with_retries(ask, what="listing", sleep=waited.append)
    assert len(waited) == 4
    assert caplog.text == ""
    assert isinstance(explain(caught.value, Circumstances(what="listing", api=api)), HubUnreachable)


def test_what_may_have_been_done_is_not_done_twice() -> None:
    """A commit whose answer was lost is not sent again; one that the Hub refused is."""
    assert is_passing(answered(503), repeatable=False)
    assert is_passing(httpx2.ConnectError("refused"), repeatable=False)
    for error in (answered(502), httpx2.ReadTimeout("x"), httpx2.RemoteProtocolError("x")):
        assert is_passing(error)
        assert not is_passing(error, repeatable=False)


def test_waits() -> None:
    """Waits last as long as the Hub asks, up to a minute; otherwise they grow, with a random part."""
    assert 7 <= wait_before(1, {"retry-after": "7"}) <= 8
    assert wait_before(1, {"retry-after": "3600"}) == 60
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert 15 <= wait_before(1, {"retry-after": soon}) <= 21
    assert 30 <= wait_before(1, {"ratelimit": '"api";r=0;t=30'}) <= 31
    assert wait_before(1, {"ratelimit": '"api";r=5;t=30'}) <= 1
    for text in ("never", "-1", "1e9", ""):
        assert wait_before(1, {"retry-after": text}) <= 1
    assert 4 <= wait_before(5, {}) <= 8
    assert len({wait_before(3, {}) for _ in range(8)}) > 1


@pytest.mark.parametrize(
    ("location", "is_followed"),
    [
        ("/other", True),
        ("https://store.example/x", True),
        ("http://hub.example/x", False),
        ("http://store.example/x", False),
    ],
)
def test_redirects(location: str, is_followed: bool) -> None:
    """A redirect keeps the token only on the same host, and never leads from HTTPS to HTTP."""
    seen: list[httpx2.Request] = []

    def hub(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(302, headers={"Location": location}) if len(seen) == 1 else httpx2.Response(200)

    with make_http_client(httpx2.MockTransport(hub)) as client:
        headers = {"Authorization": "Bearer hf_secret"}
        if not is_followed:
            with pytest.raises(httpx2.UnsupportedProtocol, match="without encryption"):
                client.get("https://hub.example/file", headers=headers)
            assert len(seen) == 1
            return
        client.get("https://hub.example/file", headers=headers)
    assert ("Authorization" in seen[1].headers) == (seen[1].url.host == "hub.example")


@pytest.mark.parametrize("said", ["Too many repos", "Too many repos."])
@pytest.mark.parametrize("code", [400, 403, 409, 429, 500])
def test_what_the_hub_said_ends_with_one_full_stop(code: int, said: str) -> None:
    """A reason from the Hub ends with one full stop, whether its servers wrote one or not."""
    error = answered(code, **{"X-Error-Message": said})
    mapped = explain(error, Circumstances(what="making a repo", api=API, repo="a/b"))
    assert mapped is not None
    assert mapped.why.endswith("Too many repos.")
