"""npm packages for tests of JavaScript clients."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

_SHOWN_CHARS = 500


def install(folder: Path, packages: Sequence[str], *options: str) -> Path:
    """Install packages into a folder.

    Without a registry, as on a machine off the network, the test is skipped with npm's own words; where
    `SHARDHUB_REQUIRED_TESTS` names these tests, a skip is a failure.
    """
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", *options, *packages]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        pytest.skip(f"npm could not install {', '.join(packages)}: {process.stderr[-_SHOWN_CHARS:]}")
    return folder
