"""The Hub's pages for people: what they show, to whom, and that they are inert."""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from markupsafe import Markup

from shardhub.localhub.rendered_cards import MAX_RENDERED_CHARS, card_html
from shardhub.localhub.server import RunningHub, running_hub

CARD = """---
license: mit
tags:
- shardhub-shard
---
# A card <script>alert(1)</script>

| a | b |
|---|---|
| 1 | 2 |

[good](https://example.org) [bad](javascript:alert(1)) ![picture](https://example.org/x.png)
<img src=x onerror=alert(1)>
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """A Hub with a private shard and a public dataset."""
    with running_hub(tmp_path_factory.mktemp("pages") / "hub") as running:
        api = HfApi(endpoint=running.endpoint, token=running.token("ann"))
        api.create_repo("ann/shard", private=True)
        adds = {
            "README.md": CARD.encode(),
            "w.safetensors": bytes(100_000),
            "parity/<b>.json": b'{"<i>": 1}',
            "binary": b"\xff\xfe\x00",
        }
        api.create_commit("ann/shard", [CommitOperationAdd(*one) for one in adds.items()], commit_message="<u>all</u>")
        api.create_repo("ann/data", repo_type="dataset", private=False)
        yield running


class Browser:
    """A browser, signed in with a token or not."""

    def __init__(self, hub: RunningHub, token: str | None) -> None:
        self.endpoint = hub.endpoint
        self.headers = {}
        if token is not None:
            self.headers["Authorization"] = f"Basic {base64.b64encode(f'anything:{token}'.encode()).decode()}"

    def get(self, path: str, method: str = "GET", **options: object) -> httpx2.Response:
        """Follow a link."""
        return httpx2.request(method, self.endpoint + path, headers=self.headers, timeout=60, **options)


@pytest.fixture
def ann(served: RunningHub) -> Browser:
    """The browser of a user who may read everything."""
    return Browser(served, served.token("ann", role="read"))


@pytest.fixture
def stranger(served: RunningHub) -> Browser:
    """A browser without a token."""
    return Browser(served, None)


def test_first_page_lists_what_the_reader_may_read(served: RunningHub, ann: Browser, stranger: Browser) -> None:
    page = ann.get("/").text
    assert "ann/shard</a> <small>private</small></td><td>shard</td>" in page
    assert "ann/data</a></td><td>dataset</td>" in page
    assert "100." in page
    public = stranger.get("/").text
    assert "ann/data" in public
    assert "ann/shard" not in public
    assert "ann/shard" in ann.get("/ann").text
    assert "no repos" in ann.get("/bob").text
    assert "ann/shard" not in Browser(served, served.token("bob")).get("/").text


def test_repo_page_shows_files_card_and_commands(served: RunningHub, ann: Browser) -> None:
    page = html.unescape(ann.get("/ann/shard").text)
    for shown in (
        'w.safetensors</a></td><td class="number">100.0 kB',
        hashlib.sha256(bytes(100_000)).hexdigest()[:16],
        "parity/</a>",
        "<table>\n<thead>",
        f"export HF_ENDPOINT={served.endpoint} HF_TOKEN=...",
        "shardhub serve ann/shard --host ADDRESS",
        "license: mit",
    ):
        assert (shown in page) == (shown != "license: mit"), shown
    assert "hf download ann/data --repo-type dataset" in ann.get("/datasets/ann/data").text


def test_every_link_works(ann: Browser) -> None:
    """From the first page, each link of the Hub's own leads to a page or a file."""
    seen: set[str] = set()
    ahead = ["/"]
    while ahead:
        path = ahead.pop()
        if path in seen:
            continue
        seen.add(path)
        answer = ann.get(path)
        assert answer.status_code == (303 if path == "/_sign-in" else 200), path
        if answer.headers["Content-Type"].startswith("text/html"):
            links = re.findall(r'href="([^"]*)"', answer.text)
            ahead += [html.unescape(link).removeprefix(ann.endpoint) for link in links if "example.org" not in link]
    assert {"/ann/shard", "/ann", "/ann/shard/tree/main/parity", "/datasets/ann/data"} <= seen
    assert any("/resolve/main/w.safetensors" in path for path in seen)
    assert any("/commit/" in path for path in seen)
    assert any("/commits/main" in path for path in seen)


def test_a_private_repo_looks_absent(served: RunningHub, stranger: Browser) -> None:
    bob = Browser(served, served.token("bob"))
    for browser in (stranger, bob):
        for path in ("", "/tree/main", "/tree/main/parity", "/blob/main/README.md", "/commits/main"):
            private, absent = browser.get(f"/ann/shard{path}"), browser.get(f"/ann/absent{path}")
            assert (private.status_code, absent.status_code) == (404, 404)
            assert private.text.replace("ann/shard", "ann/absent") == absent.text
    assert "sign in" in stranger.get("/ann/shard").text


def test_signing_in(served: RunningHub, ann: Browser, stranger: Browser) -> None:
    """The browser asks for a token, sends it with each page, and asks again if it is wrong."""
    asked = stranger.get("/_sign-in")
    assert asked.status_code == 401
    assert asked.headers["WWW-Authenticate"].startswith("Basic ")
    answer = ann.get("/_sign-in")
    assert (answer.status_code, answer.headers["Location"]) == (303, f"{served.endpoint}/")
    wrong = Browser(served, "hf_wrong")
    assert wrong.get("/").status_code == 401
    assert "WWW-Authenticate" in wrong.get("/").headers
    ann.headers["Authorization"] = "Basic !"
    assert ann.get("/").status_code == 401


def test_a_browsers_sign_in_only_reads(served: RunningHub) -> None:
    """Another site's page can make a browser send its sign-in along, so it changes nothing."""
    writer = Browser(served, served.token("ann"))
    assert writer.get("/ann/shard/resolve/main/w.safetensors").content == bytes(100_000)
    assert writer.get("/api/repos/create", "POST", content=b'{"name": "forged"}').status_code == 401
    delete = b'{"name": "shard", "organization": "ann"}'
    assert writer.get("/api/repos/delete", "DELETE", content=delete).status_code == 401
    assert writer.get("/ann/forged").status_code == 404


def test_pages_are_inert(ann: Browser) -> None:
    """What users write is shown as text: no script, no picture, no style, no frame, no form."""
    paths = ["/", "/ann/shard", "/ann/shard/tree/main/parity", "/ann/shard/blob/main/README.md", "/ann/absent"]
    paths.append("/ann/shard/blob/main/parity/%3Cb%3E.json")
    paths.append("/ann/shard/commits/main")
    for path in paths:
        answer = ann.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
        for tag in ("<script", "<img", "<b>", "<i>", "<u>", 'href="javascript', "onerror=alert(1)>"):
            assert tag not in answer.text, (path, tag)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in ann.get("/ann/shard").text


def test_card_is_rendered() -> None:
    assert card_html("---\nlicense: mit\n---\n# Title") == "<h1>Title</h1>\n"
    assert card_html("no metadata") == "<p>no metadata</p>\n"
    assert '<a href="https://example.org">' in card_html("[x](https://example.org)")
    assert "<a" not in card_html("[x](data:text/html,x)")


@pytest.mark.parametrize(
    "address",
    [
        *("smb://evil/x", "ms-msdt:/id", "ssh:x", "//evil.example", "/_sign-in", "other.md", "\\\\evil.example\\x"),
        *("javascript:alert(1)", "JaVaScript&colon;alert(1)", "&#1;javascript:x", "https&#58;x", "file:///etc/passwd"),
    ],
)
def test_other_addresses_in_a_card_are_not_links(address: str) -> None:
    for card in (f"[label]({address})", f"[label]({address} 'title')", f"<{address}>", f"[label][1]\n\n[1]: {address}"):
        html = card_html(card)
        assert "<a" not in html, card
        assert "</a" not in html, card


def test_links_in_a_card_are_judged_one_by_one() -> None:
    card = card_html("[a](ssh:x) [*b*](https://example.org) [c](x.md) <mailto:me@example.org> [d](HTTP://example.org)")
    assert re.findall('<a href="([^"]*)">', card) == [
        "https://example.org",
        "mailto:me@example.org",
        "HTTP://example.org",
    ]
    assert card.count("</a>") == 3
    assert "<p>a <a" in card


def test_a_long_card_is_shown_as_text() -> None:
    """The renderer's time grows with the square of a hostile card's length; text of any length costs nothing."""
    hostile = "[" * (256 << 10)
    card = card_html(f"---\nlicense: mit\n---\n<b>{hostile}")
    assert "it has 262,147 characters, and only cards of up to 16,384 are rendered" in card
    assert f"<pre>&lt;b&gt;{hostile}</pre>" in card
    assert card_html("*a*" + " " * (MAX_RENDERED_CHARS - 3)) == "<p><em>a</em></p>\n"


def test_a_card_is_rendered_once(served: RunningHub, ann: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty readers of a costly card wait for one rendering, and listings are answered meanwhile."""
    api = HfApi(endpoint=served.endpoint, token=served.token("ann"))
    api.create_repo("ann/costly")
    readme = b"costly " + b"[" * (MAX_RENDERED_CHARS - 7)
    api.upload_file(path_or_fileobj=readme, path_in_repo="README.md", repo_id="ann/costly")
    started, listed, rendered = threading.Event(), threading.Event(), []

    def render(text: str) -> Markup:
        rendered.append(text)
        started.set()
        assert listed.wait(60)
        return card_html(text)

    monkeypatch.setattr("shardhub.localhub.rendered_cards.card_html", render)
    with ThreadPoolExecutor(20) as readers:
        pages = [readers.submit(ann.get, "/ann/costly") for _ in range(20)]
        assert started.wait(60)
        assert ann.get("/").status_code == 200
        listed.set()
        assert {page.result().status_code for page in pages} == {200}
    assert len(rendered) == 1
    assert "costly [[" in ann.get("/ann/costly").text


def test_printed_addresses_work(served: RunningHub, tmp_path: Path) -> None:
    """`hf upload` prints an address of the Hub, and it leads to the upload."""
    token = served.token("ann")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "w.bin").write_bytes(b"w" * 1000)
    browser = Browser(served, token)
    environment = {**os.environ, "HF_ENDPOINT": served.endpoint, "HF_TOKEN": token, "HOME": str(tmp_path)}
    for arguments in (["folder"], ["folder/w.bin"], ["folder/w.bin", "in/w.bin"]):
        command = [sys.executable, "-m", "huggingface_hub.cli.hf", "upload", "ann/printed", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed = re.findall(rf"{re.escape(served.endpoint)}(/\S+)", done.stdout)
        assert printed, done.stdout
        for path in printed:
            assert browser.get(path).status_code == 200, path
    api = HfApi(endpoint=served.endpoint, token=token)
    made = api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="ann/printed")
    assert "x.txt" in browser.get(made.commit_url.removeprefix(served.endpoint)).text
    assert browser.get(made.repo_url.url.removeprefix(served.endpoint)).status_code == 200
    assert browser.get("/ann/printed/tree/main/").status_code == 200
    assert browser.get("/ann/printed/tree/nowhere").status_code == 404
    assert browser.get("/ann/printed/blob/main/nothing").status_code == 404
