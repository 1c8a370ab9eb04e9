"""Fetching in a process of its own, which a test may kill or limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from shardhub.hub.reference import Reference

FETCH = """
import sys
from pathlib import Path
from shardhub.errors import ShardhubError
from shardhub.hub.cache import Cache
from shardhub.hub.calls import HubCalls
from shardhub.hub.client import hub_api
from shardhub.hub.fetch import Fetcher
from shardhub.hub.ranges import Patience
from shardhub.hub.reference import Reference
from shardhub.hub.remote_repo import look
from shardhub.hub.snapshot import FetchProgress
from shardhub.localhub.server import RunningHub
endpoint, token, repo, commit, cache = sys.argv[1:]
say = lambda text: print(text, flush=True)
patience = Patience(stall_timeout_s=200, notice=say)
fetcher = Fetcher(lambda: hub_api(endpoint, token), Cache(Path(cache)), patience=patience)
try:
    print(fetcher.fetch(Reference(repo=repo, revision=commit)))
except ShardhubError as error:
    print(type(error).__name__, error)
"""


def command(program: str, endpoint: str, token: str, reference: Reference, cache: Path) -> list[str]:
    assert reference.revision
    return [sys.executable, "-c", program, endpoint, token, reference.repo, reference.revision, str(cache)]


def run_fetch(
    program: str, endpoint: str, token: str, reference: Reference, cache: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(program, endpoint, token, reference, cache), capture_output=True, text=True, timeout=200, check=False
    )
