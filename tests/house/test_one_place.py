"""Functions that have a module of their own are not reimplemented elsewhere."""

from __future__ import annotations

import ast
import re
import sys
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
    """Locks, sizes, addresses and whole-file writes have one module each; large files are moved by their copier."""
    elsewhere = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if re.search(pattern, path.read_text())
    }
    assert elsewhere <= places, what


def private_imports(tree: ast.AST) -> list[str]:
    """Private names of other packages that a module imports; Python's own are left out."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    own = {"shardhub", *sys.stdlib_module_names}
    return [
        name
        for name in names
        if name.split(".")[0] not in own and any(re.match(r"_[a-z]", part) for part in name.split("."))
    ]


def test_private_names_are_found() -> None:
    """The check below recognises private modules and private names, and ignores Python's and our own."""
    text = "import a.b._c\nfrom d import _e, f\nfrom g._h import i\nfrom functools import _lru_cache_wrapper\n"
    assert private_imports(ast.parse(text)) == ["a.b._c", "d._e", "g._h.i"]
    assert not private_imports(ast.parse("from shardhub.model import _a\nfrom b import __version__\n"))


def test_private_names_of_other_packages_are_used_in_one_place() -> None:
    """Private names and attributes of other packages are used in `upstream/` only, one module for each package."""
    attributes: set[str] = set()
    for path in (PACKAGE / "upstream").glob("*.py"):
        tree = ast.parse(path.read_text())
        attributes |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    private = {name for name in attributes if re.match(r"_[a-z]", name)}
    assert "_build_hf_headers" in private
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "upstream" or path.stem.endswith(("_pb2", "_pb2_grpc")):
            continue
        tree = ast.parse(path.read_text())
        assert not private_imports(tree), path
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not used & private, path
