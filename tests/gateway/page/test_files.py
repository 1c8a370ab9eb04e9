"""The page's files: their content, and the headers that they are served with."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from shardhub.gateway.page.routes import ASSETS, assets

VENDOR = ASSETS / "vendor"


def test_vendored_files_are_as_published() -> None:
    """VENDOR.json has package, version, licence text and digest of each vendored file, and there is no other file."""
    packages = json.loads((VENDOR / "VENDOR.json").read_text())["packages"]
    named = {"VENDOR.json"}
    for package in packages:
        assert re.fullmatch(r"\d+\.\d+\.\d+", package["version"])
        assert package["licence"]
        digests = {file["file"]: file["sha256"] for file in package["files"]}
        digests[package["licence_file"]] = package["licence_sha256"]
        for name, digest in digests.items():
            assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name
        named |= set(digests)
    assert named == {path.relative_to(VENDOR).as_posix() for path in VENDOR.rglob("*") if path.is_file()}


def test_page_has_nothing_inline() -> None:
    """The page contains no inline script, style or handler, and loads nothing from elsewhere."""
    text = (ASSETS / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|javascript:", text)
    assert not re.search(r"(?:src|href)=\"(?!/|#)", text)
    for path in ASSETS.glob("css/*.css"):
        assert "url(" not in path.read_text()
        assert "@import" not in path.read_text()


def test_page_links_files_that_are_there() -> None:
    """Every file that the page, its styles and its modules name is served."""
    named = set(re.findall(r"(?:src|href)=\"/page/([^\"]+)", (ASSETS / "index.html").read_text()))
    for path in ASSETS.glob("js/*.js"):
        named |= {f"js/{name}" for name in re.findall(r"from \"\./([^\"]+)\"", path.read_text())}
    assert named <= set(assets())
    assert {path.relative_to(ASSETS).as_posix() for path in ASSETS.rglob("*") if path.is_file()} == set(assets())


def test_each_language_is_there() -> None:
    """Every language that the page may load is among its files, and no other."""
    text = (ASSETS / "js" / "colours.js").read_text()
    named = set(re.findall(r"^  (\w+): \[", text, re.MULTILINE))
    folder = VENDOR / "highlight" / "languages"
    there = {path.name.removesuffix(".min.js") for path in folder.iterdir()}
    assert named == there


@pytest.mark.parametrize("path", ["/", "/page/js/main.js", "/page/css/chat.css", "/page/vendor/purify.min.js"])
def test_files_come_with_a_strict_policy(http, path) -> None:
    """The policy allows loading from the gateway only, no inline code, no framing, and no referrer."""
    answer = http.get(path)
    assert answer.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy == {
        "default-src": "'self'",
        "img-src": "'self' data:",
        "style-src": "'self'",
        "script-src": "'self'",
        "connect-src": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    again = http.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/page/", "/page/../app.py", "/page/%2e%2e/routes.py", "/page//etc/passwd", "/page/js"]
)
def test_only_the_pages_files_are_served(http, path) -> None:
    """No path leads to a file outside the page's."""
    assert http.get(path).status_code == 404
