"""A real Chromium for tests of the page, and axe-core to check it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gateway.page.visit import Visit

AXE_VERSION = "4.14.1"
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")  # its event loop runs in this thread as long as it is there
def browser():
    """A headless Chromium: playwright's own, or the system's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")
    with playwright.sync_playwright() as started:
        own = Path(started.chromium.executable_path)
        executable = str(own) if own.exists() else next(filter(None, map(shutil.which, BROWSERS)), None)
        if executable is None:
            pytest.skip("the page's tests need a Chromium: playwright install chromium, or the system's package")
        launched = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def visit(browser, gateway):
    """A first visit of the page; afterwards, checks that nothing was loaded from elsewhere and no error occurred."""
    with Visit(browser, gateway.url) as opened:
        yield opened


@pytest.fixture(scope="session")
def axe(request, tmp_path_factory):
    """The source of axe-core, from npm, kept between runs."""
    kept = Path(request.config.cache.mkdir("axe-core")) / f"axe-{AXE_VERSION}.min.js"
    if not kept.exists():
        if shutil.which("npm") is None:
            pytest.skip("axe-core comes from npm, which is not installed")
        folder = tmp_path_factory.mktemp("axe")
        command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", f"axe-core@{AXE_VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            pytest.skip(f"axe-core could not be installed: {done.stderr[-200:]}")
        shutil.copy(folder / "node_modules" / "axe-core" / "axe.min.js", kept)
    content = kept.read_bytes()
    assert hashlib.sha256(content).hexdigest() == AXE_SHA256
    return content.decode()
