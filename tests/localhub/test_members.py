"""A Hub that others reach answers nobody without a token, on any of its routes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from shardhub.localhub.app import routes
from shardhub.localhub.server import RunningHub, ServerSettings, running_hub
from tests.security.cluster import Cluster

SECRET = "the text of a public repo"
# What stands for each parameter of a route, so that it leads to something.
VALUES = {
    "namespace": "ann",
    "name": "m",
    "revision": "main",
    "path": "README.md",
    "rest": "nothing/here",
    "ref": "main",
    "repo": "1",
    "sha256": "ab" * 32,
    "size": "1",
    "nonce": "ab" * 8,
    "part": "1",
    "address": "0",
    "prefix": "default",
    "hash": "ab" * 32,
}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
# Addresses that a git client or a curious browser tries beside the routes.
OTHERS = (
    "/ann/m.git/info/refs?service=git-upload-pack",
    "/ann/m.git/HEAD",
    "/ann/m/raw/main/README.md",
    "/ann/m/resolve/main/README.md?download=true",
    "/datasets/ann/d/resolve/refs%2Fheads%2Fmain/README.md",
    "/api/models?search=m",
    "/_lfs/m/resolve/main/README.md",
    "/_xet/../ann/m/resolve/main/README.md",
    "//ann/m/resolve/main/README.md",
    "/favicon.ico",
)


def addresses() -> list[str]:
    """Every route's path, with its parameters filled in."""
    return [re.sub(r"\{(\w+)(:path)?\}", lambda match: VALUES[match[1]], route.path) for route in routes()]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster, to which this process's Hub clients belong."""
    made = Cluster(tmp_path_factory.mktemp("members") / "cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(made.folder / "authority" / "authority.pem"))
        huggingface_hub.close_session()
        yield made
    huggingface_hub.close_session()


@pytest.fixture(scope="module")
def served(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """A Hub that listens on every address over TLS, with a public model and a public dataset."""
    settings = ServerSettings(host="0.0.0.0", certificate=cluster.hub("127.0.0.1"))
    with running_hub(tmp_path_factory.mktemp("members") / "hub", settings) as running:
        running.endpoint = f"https://127.0.0.1:{running.port}"
        api = HfApi(endpoint=running.endpoint, token=running.token("ann"))
        for name, kind in (("ann/m", "model"), ("ann/d", "dataset")):
            api.create_repo(name, repo_type=kind, private=False)
            add = CommitOperationAdd("README.md", SECRET.encode())
            api.create_commit(name, [add], commit_message=SECRET, repo_type=kind)
        yield running


@pytest.fixture(scope="module")
def web(cluster: Cluster) -> Iterator[httpx2.Client]:
    """A client that keeps its connection."""
    with httpx2.Client(timeout=60) as client:
        yield client


@pytest.mark.parametrize("token", [None, "Bearer hf_wrong", "Basic YTpi", "Digest a"], ids=str)
def test_no_route_answers_without_a_token(served: RunningHub, web: httpx2.Client, token: str | None) -> None:
    """Whatever the route and the method, a request without a valid token is refused and learns nothing."""
    headers = {} if token is None else {"Authorization": token}
    for path in (*addresses(), *OTHERS):
        for method in METHODS if token is None else ("GET", "POST"):
            answer = web.request(method, served.endpoint + path, headers=headers)
            is_signed = path.startswith(("/_lfs/", "/_xet/"))
            assert answer.status_code in ({401, 403, 404, 405} if is_signed else {401}), (method, path)
            assert SECRET not in answer.text, (method, path)
            assert "X-Repo-Commit" not in answer.headers, (method, path)


def test_the_same_routes_answer_with_a_token(served: RunningHub, web: httpx2.Client) -> None:
    """With a token the paths of the walk above lead to repos, files and pages."""
    headers = {"Authorization": f"Bearer {served.token('bob', role='read')}"}
    statuses = {path: web.get(served.endpoint + path, headers=headers).status_code for path in addresses()}
    read = [path for path, status in statuses.items() if status == 200]
    assert len(read) >= 19
    assert 401 not in {status for path, status in statuses.items() if not path.startswith("/_xet/")}


def test_the_client_says_that_a_token_is_needed(served: RunningHub) -> None:
    """The real client without a token is told so, and downloads with one."""
    with pytest.raises(HfHubHTTPError, match="needs a token"):
        HfApi(endpoint=served.endpoint, token=False).list_repo_commits("ann/m")
    api = HfApi(endpoint=served.endpoint, token=served.token("bob", role="read"))
    assert SECRET in Path(api.hf_hub_download("ann/m", "README.md")).read_text()


def test_a_browser_is_asked_for_the_token(served: RunningHub, web: httpx2.Client) -> None:
    """Pages and downloads that a browser opens lead to its sign-in."""
    for path in ("/", "/ann/m", "/ann/m/resolve/main/README.md"):
        answer = web.get(served.endpoint + path, headers={"Accept": "text/html,*/*;q=0.8"})
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        (ServerSettings(), 200),
        (ServerSettings(public_url="http://localhost:1"), 200),
        (ServerSettings(public_url="https://hub.example.org"), 401),
        (ServerSettings(host="0.0.0.0", insecure_lan=True), 401),
        (ServerSettings(host="0.0.0.0", insecure_lan=True, anonymous_read=True), 200),
    ],
    ids=["loopback", "loopback by its URL", "behind a proxy", "network", "network, allowed"],
)
def test_only_on_loopback_or_if_allowed_can_everybody_read(tmp_path, settings: ServerSettings, status: int) -> None:
    """Public repos are listed for everybody on this machine alone, unless the Hub's owner opens them to others."""
    with running_hub(tmp_path / "hub", settings) as hub:
        host = urlsplit(settings.public_url or "http://localhost").netloc
        answer = httpx2.get(f"http://127.0.0.1:{hub.port}/api/models", headers={"Host": host}, timeout=60)
        assert answer.status_code == status
