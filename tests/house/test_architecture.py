"""docs/architecture.md is true of the code: files and names exist, layers are as stated, long files are explained."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.house.test_layers import LAYERS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
PATH = re.compile(r"`((?:shardhub|tests|docs|templates|protos)/[\w./-]+)`")
# A file and a name in it: `path` (`name`), or `path`, `name` within brackets.
NAMED = re.compile(r"`(shardhub/[\w/]+\.py)`\s*(?:\(|,\s)`(\w+)`")
# A method or another attribute of a class: `Class.name`.
MEMBER = re.compile(r"`([A-Z]\w+)\.(\w+)`")
# Lines beyond which a file holds two nouns, or is explained.
LONG = 400
GENERATED = ("_pb2.py", "_pb2_grpc.py", "_pb2.pyi")


def section(title: str) -> str:
    """The text under a heading, up to the next heading of its rank or above."""
    rank = TEXT[: TEXT.index(f" {title}\n")].rpartition("\n")[2]
    return re.split(rf"^#{{1,{len(rank)}}} ", TEXT.partition(f"{rank} {title}\n")[2], flags=re.MULTILINE)[0]


def names(path: Path) -> set[str]:
    """Functions, classes, methods and constants that a file defines."""
    return defined(ast.parse(path.read_text(encoding="utf-8")))


def defined(tree: ast.AST) -> set[str]:
    """Functions, classes, methods and variables that a syntax tree defines."""
    members: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            members.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            members.add(node.id)
    return members


@pytest.mark.parametrize("path", sorted(set(PATH.findall(TEXT))))
def test_named_file_exists(path: str) -> None:
    """Every file that the page names exists."""
    assert (ROOT / path).is_file()


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED.findall(TEXT))))
def test_named_thing_is_in_its_file(path: str, name: str) -> None:
    """The file defines the name that the page gives for it."""
    assert name in names(ROOT / path)


@pytest.fixture(scope="module")
def classes() -> list[ast.ClassDef]:
    """Every class of the package."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "shardhub").rglob("*.py"))
    return [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize(("name", "member"), sorted(set(MEMBER.findall(TEXT))))
def test_named_member_is_in_its_class(name: str, member: str, classes: list[ast.ClassDef]) -> None:
    """A class of that name has the method or attribute that the page gives for it."""
    assert any(member in defined(node) for node in classes if node.name == name)


def test_six_routes_name_their_steps() -> None:
    """Each of the six routes is a list of files in order, most of them with the name to look for."""
    routes = re.findall(r"^### (.+)$", section("Six routes of data"), re.MULTILINE)
    assert routes == [
        "Checkpoint to pushed shard",
        "Repo id to ready node",
        "Prompt to token",
        "Lost node to replayed stream",
        "Invitation to TLS link",
        "Manifest bytes to verified shard",
    ]
    for route in routes:
        assert len(set(PATH.findall(section(route)))) >= 5
        assert len(set(NAMED.findall(section(route)))) >= 5


def test_layers_are_those_that_imports_are_held_to() -> None:
    """The page's table and the test of imports give each unit the same layer."""
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", section("Layers"), re.MULTILINE)
    written = {unit: int(layer) for layer, units in rows for unit in re.findall(r"`(\w+)`", units)}
    assert written == {unit: layer for unit, layer in LAYERS.items() if not unit.startswith("__")}


def test_long_files_are_explained() -> None:
    """Every file of the package over 400 lines is in the table with its reason, and no shorter file is."""
    explained = set(re.findall(r"^\| `([^`]+)` \|", section("Long files"), re.MULTILINE))
    sources = [path for path in (ROOT / "shardhub").rglob("*.py*") if path.suffix in {".py", ".pyi"}]
    long_files = {
        path.relative_to(ROOT).as_posix()
        for path in sources
        if len(path.read_text(encoding="utf-8").splitlines()) > LONG
    }
    assert {path for path in long_files if not path.endswith(GENERATED)} <= explained
    assert {path for path in explained if not path.endswith(GENERATED)} <= long_files


def test_documents_are_linked() -> None:
    """README links every document, and each link of README, CONTRIBUTING and docs/ leads somewhere."""
    readme = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in readme, page.name
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", page.read_text()):
            assert target.startswith(("https://", "http://", "mailto:")) or (page.parent / target).exists(), (
                page,
                target,
            )
