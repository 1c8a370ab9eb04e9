"""Imports point down the layers, and heavy packages are imported only where they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shardhub

PACKAGE = Path(shardhub.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.stem.endswith(("_pb2", "_pb2_grpc")))

# The layer of each module and subpackage directly under shardhub/.
LAYERS = {
    "clock": 0,
    "dialling": 0,
    "errors": 0,
    "locks": 0,
    "memory_limits": 0,
    "naps": 0,
    "open_files": 0,
    "regular_files": 0,
    "requirements": 0,
    "resources": 0,
    "seldom": 0,
    "setting_checks": 1,
    "shortage": 0,
    "sizes": 0,
    "threads": 0,
    "version": 0,
    "whole_files": 0,
    # Decisions: pure, no files, no network, no MLX.
    "address": 1,
    "limits": 1,
    "manifest": 1,
    "naming": 1,
    "parameters": 1,
    "placing": 1,
    "planning": 1,
    "protocol": 1,
    "tensors": 1,
    # Files: headers, bytes, templates; no MLX.
    "blas": 2,
    "checkpoint": 2,
    "connections": 2,
    "discovery": 2,
    "kernel_folder": 2,
    "listening": 2,
    "parity": 2,
    "security": 2,
    "shard": 2,
    "source_ranges": 2,
    "splitting": 2,
    "toolchain": 2,
    "upstream": 2,
    # Subpackages.
    "hub": 3,
    "localhub": 3,
    "model": 3,
    "engine": 4,
    "wire": 4,
    "text": 4,
    "node": 5,
    "chain": 5,
    "resident": 5,
    "demo": 6,
    "gateway": 6,
    "selftest": 6,
    # The operations that commands, programs and services call.
    "usecases": 7,
    "cli": 8,
    "__main__": 9,
}
# The layers whose modules are plain modules and may import each other.
SHARED_LAYERS = {0, 1, 2}
# What takes long to import, and who may do so when it is imported itself.
HEAVY = {
    "mlx": ("model", "engine", "selftest"),
    "mlx_lm": ("model", "engine"),
    "transformers": (),
    "tokenizers": (),
    "huggingface_hub": (),
    "matplotlib": (),
}


def unit(path: Path) -> str:
    """The module or subpackage directly under shardhub/ that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST, path: Path) -> Iterator[str]:
    """Absolute names of all modules that a syntax tree imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = ["shardhub", *path.relative_to(PACKAGE).parent.parts]
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def at_import(tree: ast.Module) -> ast.Module:
    """The tree without code that runs later (functions) or never (type checking)."""

    class Pruned(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            self.generic_visit(node)
            return node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else node

    pruned: ast.Module = Pruned().visit(tree)
    return pruned


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def layer_faults(name: str, target: str) -> str | None:
    """The reason why one unit must not import another, or None."""
    if target == name:
        return None
    if LAYERS[target] > LAYERS[name]:
        return f"{name} (layer {LAYERS[name]}) imports {target} (layer {LAYERS[target]}) above it"
    if LAYERS[target] == LAYERS[name] and LAYERS[name] not in SHARED_LAYERS:
        return f"{name} imports its sibling {target}"
    return None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    """No module imports from a layer above its own, nor from another subpackage of its layer."""
    name = unit(path)
    if name == "__init__":
        assert not [target for target in imported(at_import(parsed(path)), path) if target.startswith("shardhub")]
        return
    assert name in LAYERS, f"shardhub/{name} has no layer: give it one in this test"
    targets = {target.split(".")[1] for target in imported(parsed(path), path) if target.startswith("shardhub.")}
    faults = [layer_faults(name, target) for target in targets if target in LAYERS]
    assert not [fault for fault in faults if fault]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_late(path: Path) -> None:
    """Importing a module does not import MLX, transformers, tokenizers or the Hub client, except MLX where it runs."""
    for target in imported(at_import(parsed(path)), path):
        package = target.split(".")[0]
        assert unit(path) in HEAVY.get(package, (unit(path),)), f"{path} imports {target} at module level"


def test_layer_check_finds_what_it_looks_for() -> None:
    """The checks above recognise upward, sibling, relative and type-checking imports."""
    tree = ast.parse("from ..node import servicer\nif TYPE_CHECKING:\n import mlx\ndef f():\n import transformers\n")
    assert "shardhub.node.servicer" in set(imported(tree, PACKAGE / "chain" / "route.py"))
    assert not {"mlx", "transformers"} & set(imported(at_import(tree), PACKAGE / "chain" / "route.py"))
    assert layer_faults("chain", "node") == "chain imports its sibling node"
    assert layer_faults("planning", "model") is not None
    assert layer_faults("planning", "naming") is None
    assert layer_faults("cli", "errors") is None


def loaded_by(*arguments: str) -> set[str]:
    """Top-level packages loaded by `python ARGUMENTS`, as the interpreter's own import log tells."""
    done = subprocess.run(
        [sys.executable, "-v", *arguments], capture_output=True, text=True, errors="replace", check=True
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import '")]
    return {line.split("'")[1].split(".")[0] for line in lines}


def test_import_log_is_read_right() -> None:
    """The import log names an imported package, and no other."""
    assert "decimal" in loaded_by("-c", "import decimal")
    assert "decimal" not in loaded_by("-c", "pass")


def test_help_loads_nothing_heavy() -> None:
    """`shardhub --help` and importing the command line load no model, Hub, RPC or validation package."""
    program = "import sys; sys.argv = ['shardhub', '--help']; from shardhub.cli import main; main()"
    heavy = {*HEAVY, "pydantic", "grpc", "numpy", "jinja2", "safetensors", "torch"}
    assert not loaded_by("-c", program) & heavy
    assert not loaded_by("-c", "import shardhub.cli") & heavy


def test_forbidden_modules_and_calls_are_absent() -> None:
    """None of our code unpickles, evaluates or runs data (`mx.eval` and a module's `eval()` are unrelated)."""
    forbidden_modules = {"pickle", "marshal", "dill", "cloudpickle", "shelve", "joblib", "cPickle"}
    forbidden_calls = {"eval", "exec", "compile", "__import__"}
    for path in PACKAGE.rglob("*.py"):
        tree = parsed(path)
        packages = {target.split(".")[0] for target in imported(tree, path)}
        assert not packages & forbidden_modules, path
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not names & forbidden_calls, path


def test_use_cases_know_no_terminal() -> None:
    """Use cases do not print, read keys, end the process or use standard streams: they report to and ask a watcher."""
    for path in (PACKAGE / "usecases").glob("*.py"):
        tree = parsed(path)
        packages = {target.split(".")[0] for target in imported(tree, path)}
        assert not packages & {"rich", "typer", "click", "getpass"}, path
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not names & {"print", "input", "exit", "breakpoint"}, path
        streams = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & {
            "sys.stdin",
            "sys.stdout",
            "sys.stderr",
            "sys.exit",
            "os._exit",
        }
        assert not streams, path
