"""The logic of heads and nodes takes time, randomness and links from outside, so that a simulation can replace them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import shardhub

PACKAGE = Path(shardhub.__file__).parent
# What the product's own compute and links are made of, and facts about the machine.
OWN = {
    *("chain/links.py", "engine/compute.py", "engine/host.py"),
    *("resident/link.py", "resident/processes.py", "resident/records.py"),
}
# What both ends of a link put on the wire.
ON_THE_WIRE = [PACKAGE / "wire" / name for name in ("codec.py", "outbox.py")]
REFUSED_MODULES = {"time", "random", "secrets", "uuid", "datetime"}
REFUSED_CALLS = {"sleep", "timeout", "timeout_at", "wait_for", "call_later", "call_at", "to_thread"}
# A lock is free where all runs in one thread.
REFUSED_THREADS = {"Thread", "Timer", "Event", "Condition", "ThreadPoolExecutor"}
HEAVY = ("mlx", "mlx_lm", "transformers", "tokenizers")


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


FOLDERS = ("chain", "engine", "node", "resident")
ALL = sorted(path for folder in FOLDERS for path in (PACKAGE / folder).glob("*.py"))
LOGIC = [path for path in [*ALL, *ON_THE_WIRE] if relative(path) not in OWN]


@pytest.mark.parametrize("path", LOGIC, ids=relative)
def test_logic_takes_time_chance_and_links_from_outside(path: Path) -> None:
    """Each module imports no source of time or randomness, starts no thread and knows no class of link."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not REFUSED_MODULES & {name.name for name in node.names}, f"line {node.lineno}"
        elif isinstance(node, ast.ImportFrom):
            assert node.module not in REFUSED_MODULES, f"line {node.lineno}"
            assert "NodeLink" not in {name.name for name in node.names}, f"line {node.lineno}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "asyncio":
                assert node.attr not in REFUSED_CALLS, f"line {node.lineno}"
            elif node.value.id in ("threading", "futures"):
                assert node.attr not in REFUSED_THREADS, f"line {node.lineno}"
            elif node.attr == "time":
                assert "loop" not in node.value.id, f"line {node.lineno}: the loop's time"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "asyncio.wait":
            assert "timeout" not in {keyword.arg for keyword in node.keywords}, f"line {node.lineno}"


@pytest.mark.parametrize("path", [path for path in ALL if path.parent.name != "engine"], ids=relative)
def test_objects_are_kept_in_the_order_they_came(path: Path) -> None:
    """No set holds tasks, streams, links or places, as its order would depend on their addresses."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.AnnAssign) and isinstance(node.annotation, ast.Subscript):
            name = node.annotation.value
            if isinstance(name, ast.Name) and name.id in ("set", "frozenset"):
                of = ast.unparse(node.annotation.slice)
                assert of == "int", f"line {node.lineno}: a set of {of}"


@pytest.mark.parametrize("path", LOGIC, ids=relative)
def test_no_order_comes_from_a_set(path: Path) -> None:
    """No loop or comprehension iterates a set, whose order of ids and names differs between processes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.For, ast.comprehension)):
            through = node.iter
            is_set = isinstance(through, (ast.Set, ast.SetComp)) or (
                isinstance(through, ast.Call) and ast.unparse(through.func) in ("set", "frozenset")
            )
            assert not is_set, f"goes through {ast.unparse(through)}"


def loaded_by(module: str, packages: tuple[str, ...]) -> str:
    """Which of these packages are loaded in a process that imports a module."""
    code = f"import sys, {module}\nprint([name for name in {packages} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_head_logic_loads_without_a_network_or_a_model() -> None:
    """A simulation of schedulers and chains loads neither gRPC nor MLX."""
    assert loaded_by("shardhub.chain.scheduler", ("grpc", *HEAVY)) == "[]\n"


def test_node_logic_loads_without_a_model() -> None:
    """A simulation of servicers and engines, with their session tables, loads no MLX."""
    assert loaded_by("shardhub.node.servicer", HEAVY) == "[]\n"
