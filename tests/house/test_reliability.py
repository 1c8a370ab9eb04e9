"""docs/reliability.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_fault_has_a_test_that_exists() -> None:
    """A row whose test is gone promises what nobody holds."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(named) >= 50
    for file, name in named:
        functions = {
            node.name
            for node in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name in functions, f"{file} has no {name}"


def test_no_fault_stands_twice() -> None:
    """One row for each fault."""
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| `tests/", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
    assert len(rows) == len(set(rows))
