"""docs/reliability.md lists the tested faults, and every test in it exists and runs."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.faults import DOCUMENT, FAULTS, written

ROOT = Path(__file__).resolve().parents[2]
ROWS = [row for rows in FAULTS.values() for row in rows]


@cache
def functions(file: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions of a file by name; many tests stand in the same one."""
    nodes = ast.walk(ast.parse((ROOT / file).read_text()))
    return {node.name: node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_table_is_as_written() -> None:
    """The document is up to date: `python -m tests.faults` would change nothing."""
    text = DOCUMENT.read_text()
    assert text == written(text)


@pytest.mark.parametrize("test", sorted({test for _, _, test in ROWS}))
def test_every_fault_has_a_test_that_runs(test) -> None:
    """No row's test is missing or skipped, as the row would then promise something untested."""
    file, _, name = test.partition("::")
    assert name in functions(file), f"{file} has no {name}"
    for mark in map(ast.unparse, functions(file)[name].decorator_list):
        assert not mark.startswith(("pytest.mark.skip", "pytest.mark.xfail")) or "sys.platform" in mark


def test_no_fault_stands_twice() -> None:
    """Each fault has one row."""
    faults = [fault for fault, _, _ in ROWS]
    assert len(faults) == len(set(faults)) >= 100
