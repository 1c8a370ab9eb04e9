"""A head that runs no stage loads no MLX: real commands against real nodes report their modules when they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shardhub.blas import carries_reference_blas
from tests import cut, nodes

TIMEOUT_S = 120
# `shardhub` as it is, which writes down at its end what it has imported, and which library computes.
PROGRAM = """
import atexit, json, os, sys

def write():
    from shardhub.blas import blas_path
    facts = {"modules": sorted(name for name, module in sys.modules.items() if module), "blas": blas_path()}
    with open(os.environ["MODULES_FILE"], "w") as file:
        json.dump(facts, file)

atexit.register(write)
from shardhub.cli import main
main()
"""
# Whoever imports it has taken one of the branches that transformers keeps for PyTorch.
TORCH = "raise RuntimeError('PyTorch was imported')\n"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, tiny_tokenizer):
    """A tiny model with a tokenizer, cut in two."""
    folder = tmp_path_factory.mktemp("head")
    model = cut.tiny_model(folder / "model")
    tiny_tokenizer(model)
    return cut.cut(model, folder / "out", (3,))


@pytest.fixture(scope="module")
def served(pipeline):
    """Options that name a node for each stage."""
    started = nodes.start(*((cut.shard_folder(pipeline, index),) for index in (0, 1)))
    yield [part for node in started for part in ("--node", node.address)]
    nodes.stop_all(started)


@pytest.fixture(scope="module")
def torch(tmp_path_factory) -> Path:
    """A folder of packages with a PyTorch that looks installed and must not be imported."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(TORCH)
    information = folder / "torch-2.9.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.0\n")
    return folder


class Command:
    """A `shardhub` command in a process of its own.

    Args:
        file: Where it writes what it imported.
        packages: A folder of more packages.
    """

    def __init__(self, file: Path, packages: Path, *arguments: object, **env: str) -> None:
        self.file = file
        path = os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "MODULES_FILE": str(file), "PYTHONPATH": path, **env},
        )
        self.timer = threading.Timer(TIMEOUT_S, self.process.kill)
        self.timer.start()

    def finish(self) -> dict[str, object]:
        """Wait for a successful end; returns the imported packages and modules, and the BLAS."""
        output, errors = self.process.communicate()
        self.timer.cancel()
        assert self.process.returncode == 0, output + errors
        facts: dict[str, object] = json.loads(self.file.read_text())
        return facts


def packages(facts: dict[str, object]) -> set[str]:
    return {name.split(".")[0] for name in facts["modules"]}


def test_status_loads_no_mlx(pipeline, served, torch, tmp_path) -> None:
    """`status` only asks the nodes, and needs no tokenizer either."""
    facts = Command(tmp_path / "modules", torch, "status", pipeline.folder, *served, "--json").finish()
    assert "grpc" in packages(facts)
    assert not packages(facts) & {"mlx", "mlx_lm", "transformers", "torch"}


def test_generate_loads_no_mlx(pipeline, served, torch, tmp_path) -> None:
    """`generate` over nodes loads transformers for the tokenizer, but not its code for PyTorch."""
    arguments = ("generate", pipeline.folder, *served, "--prompt", "hi", "--max-tokens", 3)
    facts = Command(tmp_path / "modules", torch, *arguments).finish()
    assert "transformers" in packages(facts)
    assert not packages(facts) & {"mlx", "mlx_lm", "torch"}
    assert "shardhub.engine.engine" not in facts["modules"]


def test_gateway_loads_no_mlx(pipeline, served, torch, tmp_path) -> None:
    """A gateway over nodes answers, and ends, without MLX."""
    arguments = ("gateway", pipeline.folder, *served, "--port", 0, "--json")
    command = Command(tmp_path / "modules", torch, *arguments)
    assert json.loads(command.process.stdout.readline())["url"]
    command.process.send_signal(signal.SIGTERM)
    facts = command.finish()
    assert not packages(facts) & {"mlx", "mlx_lm", "torch"}


@pytest.mark.skipif(not carries_reference_blas(), reason="MLX is no CPU wheel for Linux")
@pytest.mark.parametrize(("choice", "library"), [("auto", "openblas"), ("reference", "")])
def test_blas_is_chosen_before_a_head_loads_mlx(pipeline, served, torch, tmp_path, choice, library) -> None:
    """A head that runs a stage loads MLX late and with the BLAS of the option; other heads load no BLAS and no MLX."""
    arguments = ("generate", pipeline.folder, "--prompt", "hi", "--max-tokens", 3, "--blas", choice)
    here = Command(tmp_path / "here", torch, *arguments).finish()
    assert "mlx" in packages(here)
    if choice == "auto" and not here["blas"]:
        pytest.skip("no OpenBLAS can be loaded")
    assert library in str(here["blas"])
    assert bool(here["blas"]) is bool(library)
    assert not Command(tmp_path / "there", torch, *arguments, *served).finish()["blas"]
