"""Requests that the Hub must refuse, sent without the client library."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from huggingface_hub import HfApi

from shardhub.localhub import uploads
from shardhub.localhub.server import RunningHub, ServerSettings, running_hub

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


# One client for all: making one reads the system's certificates, which takes longer than most tests here. Connections
# are not kept, because servers come and go.
WEB = httpx2.Client(timeout=60, limits=httpx2.Limits(max_keepalive_connections=0))


class Raw:
    """A client that sends arbitrary requests."""

    def __init__(self, endpoint: str, token: str | None) -> None:
        self.endpoint = endpoint
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        url = path if path.startswith("http") else self.endpoint + path
        return WEB.request(method, url, headers={**self.headers, **options.pop("headers", {})}, **options)

    def commit(self, repo: str, *operations: tuple[str, dict[str, Any]], parent: str | None = None) -> httpx2.Response:
        header = {"summary": "raw", "description": ""} | ({"parentCommit": parent} if parent else {})
        lines = [("header", header), *operations]
        body = "".join(json.dumps({"key": key, "value": value}) + "\n" for key, value in lines)
        return self.call("POST", f"/api/models/{repo}/commit/main", content=body)

    def batch(self, repo: str, oid: str = SHA256, size: int = len(CONTENT)) -> httpx2.Response:
        message = {"operation": "upload", "objects": [{"oid": oid, "size": size}], "hash_algo": "sha256"}
        return self.call("POST", f"/{repo}.git/info/lfs/objects/batch", json=message)

    def upload_url(self, repo: str, oid: str = SHA256, size: int = len(CONTENT)) -> str:
        url: str = self.batch(repo, oid, size).json()["objects"][0]["actions"]["upload"]["href"]
        return url


def file(path: str, content: bytes = b"x") -> tuple[str, dict[str, Any]]:
    return "file", {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}


def lfs_file(path: str, oid: str = SHA256, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "lfsFile", {"path": path, "algo": "sha256", "oid": oid, **fields}


@pytest.fixture
def raw(hub: RunningHub, api: HfApi) -> Raw:
    """A raw client with the token of `ann`."""
    return Raw(hub.endpoint, str(api.token))


# What must not get into a tree: a client joins these to its own folders.
PATHS = [
    "../x",
    "a/../../x",
    "a/./b",
    "/etc/x",
    "a//b",
    "a/",
    "",
    ".",
    "..",
    ".git/x",
    "A/.GIT/x",
    "a\\b",
    "a\0b",
    "a\nb",
]


def test_a_path_that_is_not_plain_is_not_committed(raw: Raw, api: HfApi, repo: str) -> None:
    statuses = {path: raw.commit(repo, file(path)).status_code for path in (*PATHS, "x" * 256, "y/" * 600 + "y")}
    assert {path for path, status in statuses.items() if status != 400} == set()
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_a_file_cannot_lie_under_a_file(raw: Raw, repo: str) -> None:
    assert raw.commit(repo, file("a"), file("a/b")).status_code == 400
    assert raw.commit(repo, file("a")).status_code == 200
    assert raw.commit(repo, file("a/b/c")).status_code == 400


def test_resolve_leads_nowhere_but_into_the_commit(raw: Raw, repo: str) -> None:
    for path in ("..%2f..%2fhub.sqlite3", "%2e%2e/x", "a/..%5cx", "%2Fetc%2Fpasswd", "x%00", "%ff"):
        answer = raw.call("GET", f"/{repo}/resolve/main/{path}")
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "EntryNotFound"), path


def test_a_bad_repo_name_is_refused(raw: Raw, repo: str) -> None:
    for name in ("..", "a--b", "a.git", "-a", "a/b", "a b", "é", "x" * 97, "a\n", ""):
        assert raw.call("POST", "/api/repos/create", json={"name": name}).status_code == 400, name
        assert raw.call("POST", "/api/repos/move", json={"fromRepo": repo, "toRepo": f"ann/{name}"}).status_code == 400


def test_a_bad_tag_name_is_refused(raw: Raw, repo: str) -> None:
    for name in ("a..b", "refs/heads/x", "a.lock", "-x", "a//b", "0" * 40, "a b", "a\0", ""):
        assert raw.call("POST", f"/api/models/{repo}/tag/main", json={"tag": name}).status_code == 400, name


def test_a_foreign_namespace_is_refused(hub: RunningHub, raw: Raw, repo: str) -> None:
    assert raw.call("POST", "/api/repos/create", json={"name": "x", "organization": "bob"}).status_code == 403
    assert raw.call("POST", "/api/repos/create", json={"name": "x", "organization": "api"}).status_code == 400
    bob = Raw(hub.endpoint, hub.token("bob"))
    for answer in (
        bob.commit(repo, file("x")),
        bob.batch(repo),
        bob.call("DELETE", "/api/repos/delete", json={"name": "model", "organization": "ann"}),
        bob.call("PUT", f"/api/models/{repo}/settings", json={"visibility": "public"}),
        bob.call("POST", "/api/repos/move", json={"fromRepo": repo, "toRepo": "bob/model"}),
        bob.call("POST", f"/api/models/{repo}/super-squash/main", json={}),
    ):
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "RepoNotFound")


def test_a_token_with_role_read_cannot_write(hub: RunningHub, raw: Raw, repo: str) -> None:
    reader = Raw(hub.endpoint, hub.token("ann", role="read"))
    assert reader.call("GET", f"/api/models/{repo}").status_code == 200
    assert reader.commit(repo, file("x")).status_code == 403
    assert reader.batch(repo).status_code == 403
    assert reader.call("POST", "/api/repos/create", json={"name": "x"}).status_code == 403


def test_a_public_repo_is_read_without_a_token_and_written_with_one(hub: RunningHub, raw: Raw) -> None:
    raw.call("POST", "/api/repos/create", json={"name": "open", "visibility": "public"})
    anyone, bob = Raw(hub.endpoint, None), Raw(hub.endpoint, hub.token("bob"))
    assert anyone.call("GET", "/api/models/ann/open").status_code == 200
    assert anyone.commit("ann/open", file("x")).status_code == 401
    assert bob.commit("ann/open", file("x")).status_code == 403


def test_wrong_bytes_are_refused_and_can_be_sent_again(raw: Raw, repo: str) -> None:
    url = raw.upload_url(repo)
    assert WEB.put(url, content=CONTENT[:-1] + b"!").status_code == 400
    assert raw.commit(repo, lfs_file("w", size=len(CONTENT))).status_code == 400
    assert WEB.put(url, content=CONTENT).status_code == 200
    assert raw.commit(repo, lfs_file("w", size=len(CONTENT))).status_code == 200


def test_extra_bytes_are_refused_with_and_without_a_length(raw: Raw, repo: str) -> None:
    url = raw.upload_url(repo)
    assert WEB.put(url, content=CONTENT + b"!").status_code == 413
    assert WEB.put(url, content=iter([CONTENT, b"!"])).status_code == 413
    assert WEB.put(url, content=CONTENT[:-1]).status_code == 400


def test_a_forged_or_expired_signature_is_refused(
    hub: RunningHub, raw: Raw, repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = raw.upload_url(repo)
    other = hashlib.sha256(b"other").hexdigest()
    for forged in (
        url.replace(SHA256, other),
        url.replace(f"/{len(CONTENT)}/", f"/{len(CONTENT) + 1}/"),
        url.replace("/_lfs/1/", "/_lfs/2/"),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        url.replace("expires=", "expires=9"),
        url.replace("/1?", "/2?"),
        url.split("?")[0],
        url.split("signature=")[0] + "signature=%C3%A9",
    ):
        assert forged != url
        assert WEB.put(forged, content=b"other").status_code == 403
    monkeypatch.setattr("shardhub.localhub.signing.UPLOAD_LIFETIME_S", -1.0)
    assert WEB.put(raw.upload_url(repo), content=CONTENT).status_code == 403


def test_an_upload_url_dies_with_its_repo(raw: Raw, repo: str) -> None:
    url = raw.upload_url(repo)
    raw.call("DELETE", "/api/repos/delete", json={"name": "model", "organization": "ann"})
    raw.call("POST", "/api/repos/create", json={"name": "model"})
    assert WEB.put(url, content=CONTENT).status_code == 404


def test_knowing_a_digest_gives_no_right_to_its_bytes(
    hub: RunningHub, raw: Raw, repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 1 << 10)
    monkeypatch.setattr("shardhub.localhub.routes.lfs.PART_BYTES", 1 << 10)
    action = raw.batch(repo).json()["objects"][0]["actions"]["upload"]
    parts = []
    for number in range(1, -(-len(CONTENT) // 1024) + 1):
        part = WEB.put(action["header"][str(number)], content=CONTENT[(number - 1) * 1024 : number * 1024])
        parts.append({"partNumber": number, "etag": part.headers["ETag"]})
    assert WEB.post(action["href"], json={"oid": SHA256, "parts": parts}).status_code == 200
    assert WEB.post(action["href"], json={"oid": SHA256, "parts": parts}).status_code == 200
    assert "actions" not in raw.batch(repo).json()["objects"][0]
    assert raw.commit(repo, lfs_file("w")).status_code == 200

    bob = Raw(hub.endpoint, hub.token("bob"))
    bob.call("POST", "/api/repos/create", json={"name": "m"})
    assert bob.commit("bob/m", lfs_file("stolen")).status_code == 400
    action = bob.batch("bob/m").json()["objects"][0]["actions"]["upload"]
    # The etags can be guessed from the nonce in the URL; the bytes cannot.
    nonce = urlsplit(action["href"]).path.split("/")[-2]
    parts = [{"partNumber": part["partNumber"], "etag": f'"{nonce}-{part["partNumber"]}"'} for part in parts]
    assert WEB.post(action["href"], json={"oid": SHA256, "parts": parts}).status_code == 400
    assert bob.commit("bob/m", lfs_file("stolen")).status_code == 400


def test_a_commit_cannot_lie_about_an_objects_size(raw: Raw, repo: str) -> None:
    WEB.put(raw.upload_url(repo), content=CONTENT)
    assert raw.commit(repo, lfs_file("w", size=1)).status_code == 400


def test_a_commit_that_is_not_one_is_refused(raw: Raw, repo: str) -> None:
    for body in (b"", b"{}\n", b'{"key": "header"}\n', b"[" * 100_000, b'{"key": "x", "value": {}}\n', b"\xff\xfe\n"):
        assert raw.call("POST", f"/api/models/{repo}/commit/main", content=body).status_code == 400, body[:20]


def test_bodies_have_limits(raw: Raw, repo: str) -> None:
    assert raw.call("POST", "/api/repos/create", content=b" " * (5 << 20)).status_code == 413
    assert raw.call("POST", "/api/repos/create", content=iter([b" " * (1 << 20)] * 5)).status_code == 413
    assert raw.commit(repo, file("big", b"x" * (6 << 20))).status_code == 413


def test_a_full_disk_is_507(hub: RunningHub, raw: Raw, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = raw.upload_url(repo)
    monkeypatch.setattr("shardhub.localhub.store.RESERVE_BYTES", 1 << 60)
    assert raw.batch(repo).status_code == 507
    assert WEB.put(url, content=CONTENT).status_code == 507
    assert raw.commit(repo, file("x")).status_code == 507
    monkeypatch.undo()
    assert WEB.put(url, content=CONTENT).status_code == 200


def test_a_foreign_host_name_is_refused(hub: RunningHub, raw: Raw, repo: str) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "[::1", "é"):
        answer = raw.call("GET", f"/api/models/{repo}", headers={"Host": host.encode()})
        assert answer.status_code in {400, 403}
    for host in ("localhost:1", "127.0.0.1", "[::1]:8090"):
        assert raw.call("GET", f"/api/models/{repo}", headers={"Host": host}).status_code == 200


def test_content_is_never_a_page(raw: Raw, repo: str) -> None:
    raw.commit(repo, file("page.html", b"<script>alert(1)</script>"))
    headers = raw.call("GET", f"/{repo}/resolve/main/page.html").headers
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in headers["Content-Security-Policy"]


def test_tokens_and_signatures_are_not_logged(
    hub: RunningHub, raw: Raw, repo: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = raw.upload_url(repo)
    WEB.put(url, content=b"wrong")
    raw.call("GET", f"/api/models/{repo}?token={raw.headers['Authorization'][7:]}")
    lines = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]
    assert any(line.startswith("PUT /_lfs/") for line in lines)
    assert not any("hf_" in line or "signature" in line for line in lines)
    stored = b"".join(path.read_bytes() for path in hub.hub.folder.iterdir() if path.is_file())
    assert raw.headers["Authorization"][7:].encode() not in stored


def test_concurrent_commits_are_all_kept(raw: Raw, api: HfApi, repo: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: raw.commit(repo, file(f"f{number}", b"%d" % number)), range(16)))
    assert [answer.status_code for answer in answers] == [200] * 16
    assert set(api.list_repo_files(repo)) == {".gitattributes", *(f"f{number}" for number in range(16))}
    assert len(api.list_repo_commits(repo)) == 17


def test_of_concurrent_commits_on_one_parent_one_is_taken(raw: Raw, api: HfApi, repo: str) -> None:
    parent = api.model_info(repo).sha
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda number: raw.commit(repo, file(f"f{number}"), parent=parent).status_code, range(8))
        )
    assert sorted(answers) == [200] + [412] * 7


def test_urls_given_to_clients_start_with_the_public_one(tmp_path: Path) -> None:
    settings = ServerSettings(public_url="http://hub.example:1234/")
    with running_hub(tmp_path / "hub", settings) as hub:
        address = f"http://127.0.0.1:{hub.port}"
        raw = Raw(address, hub.token("ann"))
        made = raw.call("POST", "/api/repos/create", json={"name": "m"}, headers={"Host": "hub.example:1234"})
        assert made.json()["url"] == "http://hub.example:1234/ann/m"
        assert raw.upload_url("ann/m").startswith("http://hub.example:1234/_lfs/")


def test_a_stalled_body_is_given_up(hub: RunningHub, raw: Raw, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = raw.upload_url(repo).removeprefix(hub.endpoint)
    with monkeypatch.context() as patch, socket.create_connection(("127.0.0.1", hub.port), timeout=60) as connection:
        patch.setattr("shardhub.localhub.bodies.STALL_TIMEOUT_S", 0.05)
        head = f"PUT {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(CONTENT)}\r\n\r\n"
        connection.sendall(head.encode() + CONTENT[:10])
        with connection.makefile("rb") as answer:
            assert answer.read().startswith(b"HTTP/1.1 408")
    assert WEB.put(hub.endpoint + target, content=CONTENT).status_code == 200
