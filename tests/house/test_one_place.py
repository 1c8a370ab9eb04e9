"""What the package does in one place is not done by hand elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import shardhub

PACKAGE = Path(shardhub.__file__).parent


@pytest.mark.parametrize(
    ("what", "pattern", "places"),
    [
        ("locks between processes", r"\bfcntl\.flock\(", {"locks.py"}),
        ("amounts of bytes as text", r"/ (1e9|10\*\*9):", {"sizes.py"}),
        ("printing HOST:PORT", r"\]:\{|\{[a-z_.]*host\}:\{", {"address.py"}),
        ("parsing HOST:PORT", r"address\.r?(partition|split)\(\":\"", {"address.py"}),
        (
            "replacing files",
            r"\bos\.replace\(",
            {"whole_files.py", "hub/cache.py", "hub/download.py", "splitting/split.py"},
        ),
    ],
)
def test_it_is_done_in_one_place(what: str, pattern: str, places: set[str]) -> None:
    """Locks, sizes, addresses and whole files have one module; large files are moved by what copied them."""
    elsewhere = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if re.search(pattern, path.read_text())
    }
    assert elsewhere <= places, what
