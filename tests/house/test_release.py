"""The version is defined in one place, and is the changelog's newest release."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from shardhub import __version__

ROOT = Path(__file__).resolve().parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def test_version_stands_in_one_place() -> None:
    """The package metadata read the package's own `__version__`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "shardhub/version.py"


def test_changelog_has_this_version() -> None:
    """Unreleased comes first, then the releases with their dates, newest first; the newest is this version."""
    headings = re.findall(r"^## \[([^\]]+)\](?: - (\d{4}-\d{2}-\d{2}))?$", CHANGELOG, re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == __version__
    assert all(day for _, day in headings[1:])
    days = [day for _, day in headings[1:]]
    assert days == sorted(days, reverse=True)
    assert len({name for name, _ in headings}) == len(headings)
