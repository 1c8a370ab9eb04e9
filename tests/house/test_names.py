"""A name says what it holds: words that would fit any value name nothing of ours."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path
    for folder in ("shardhub", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.stem.endswith(("_pb2", "_pb2_grpc"))
]
EMPTY_WORDS = {"found", "told", "wanted", "way", "it"}


def defined(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that a syntax tree defines, with their lines: functions, classes, arguments, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def empty_names(source: str) -> list[tuple[str, int]]:
    """Names in a source that consist of one of the empty words, and their lines."""
    return [(name, line) for name, line in defined(ast.parse(source)) if name.strip("_") in EMPTY_WORDS]


def test_no_name_is_an_empty_word() -> None:
    """No function, class, argument, variable or attribute is named by a word that fits any value."""
    faults = {
        path.relative_to(ROOT).as_posix(): names
        for path in SOURCES
        if (names := empty_names(path.read_text(encoding="utf-8")))
    }
    assert not faults


def test_an_empty_word_is_seen_wherever_a_name_is_defined() -> None:
    """Each kind of definition is seen, with underscores too; longer names with such a word are fine."""
    source = "def told(found, *, way_s=1): self._wanted = it = (x for _way in [found_at := 1])\nclass _it_: ...\n"
    assert sorted(name for name, _ in empty_names(source)) == ["_it_", "_wanted", "_way", "found", "it", "told"]
