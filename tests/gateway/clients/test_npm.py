"""JavaScript clients, unmodified from the registry."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gateway.clients import npm
from tests.waiting import wait_until

HERE = Path(__file__).parent
PACKAGES = ("openai@7", "ai@7", "@ai-sdk/openai-compatible@3", "zod@4")

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]


@pytest.fixture(scope="session")
def modules(tmp_path_factory):
    """A folder with the packages."""
    return npm.install(tmp_path_factory.mktemp("npm"), PACKAGES)


@pytest.mark.parametrize("script", ["openai.mjs", "ai.mjs"])
def test_javascript_clients_are_served(gateway, http, modules, script) -> None:
    """Each script succeeds, and leaves no session behind."""
    shutil.copy(HERE / script, modules)
    command = ["node", script, gateway.url]
    done = subprocess.run(command, cwd=modules, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    wait_until(lambda: http.get("/health").json()["answers"] == 0)
