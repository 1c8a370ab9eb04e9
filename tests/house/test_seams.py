"""The logic of a head reaches for no clock, no randomness and no gRPC of its own: a simulation gives it others."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import shardhub.chain

FOLDER = Path(shardhub.chain.__file__).parent
# What the product's own clock, dice and links are made of.
OWN = {"links.py"}
REFUSED_MODULES = {"time", "random", "secrets", "uuid", "datetime"}
REFUSED_CALLS = {"sleep", "timeout", "timeout_at", "wait_for", "call_later", "call_at"}
LOGIC = sorted(path for path in FOLDER.glob("*.py") if path.name not in OWN)


@pytest.mark.parametrize("path", LOGIC, ids=lambda path: path.stem)
def test_chain_takes_time_chance_and_links_from_outside(path: Path) -> None:
    """Each module imports no source of time or chance, waits on the chain's clock, and knows no class of a link."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not REFUSED_MODULES & {name.name for name in node.names}, f"line {node.lineno}"
        elif isinstance(node, ast.ImportFrom):
            assert node.module not in REFUSED_MODULES, f"line {node.lineno}"
            assert "NodeLink" not in {name.name for name in node.names}, f"line {node.lineno}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "asyncio":
            assert node.attr not in REFUSED_CALLS, f"line {node.lineno}"


@pytest.mark.parametrize("path", LOGIC, ids=lambda path: path.stem)
def test_chain_keeps_objects_in_the_order_they_came(path: Path) -> None:
    """No set of tasks, streams, links or places, whose order would come from their addresses."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.AnnAssign) and isinstance(node.annotation, ast.Subscript):
            name = node.annotation.value
            if isinstance(name, ast.Name) and name.id in ("set", "frozenset"):
                of = ast.unparse(node.annotation.slice)
                assert of == "int", f"line {node.lineno}: a set of {of}"


def test_head_logic_loads_without_a_network_or_a_model() -> None:
    """A simulation of schedulers and chains loads neither gRPC nor MLX."""
    code = (
        "import sys, shardhub.chain.scheduler\n"
        "print([name for name in ('grpc', 'mlx', 'mlx_lm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
