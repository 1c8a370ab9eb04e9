"""`shardhub plan`: the table, where the model can be cut, what crosses, and whether it is proven."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from shardhub.cli.app import app
from tests import cut, nodes, tiny
from tests.architectures.matrix import CONFIGS


def shardhub(*arguments: object) -> Result:
    """Run a command in this process: MLX is imported once."""
    return CliRunner().invoke(app, [str(part) for part in arguments])


def saved(folder: Path, config: dict[str, Any]) -> Path:
    return tiny.save(tiny.build(config), config, folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = cut.tiny_model(tmp_path_factory.mktemp("plan") / "model", "llama_sliding")
    tiny.save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can be cut before layers 1 and 2 without a crossing that grows with the context."""
    return saved(tmp_path_factory.mktemp("plan") / "growing", CONFIGS["deepseek_v41"])


def test_plan_is_proven(model: Path) -> None:
    """Verdict and allowed cuts follow the table on stdout; the JSON report contains them."""
    result = shardhub("plan", model, "--stages", 3)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["stage", "layers"]
    assert "cuts allowed before any layer" in lines
    assert lines[-2].startswith("proven by graph: 3 stages compute what the whole model computes (mlx-lm ")
    assert lines[-1] == "proven for several sessions in one batch too"
    assert sorted(path.name for path in model.iterdir()) == sorted(
        ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"]
    )
    report = json.loads(shardhub("plan", model, "--stages", 3, "--json").stdout)["report"]
    assert report["proof"]["state"] == "proven"
    assert report["cuts"]["allowed"] == list(range(1, tiny.NUM_LAYERS))
    assert report["cuts"]["refused"] == {}
    assert [chosen["position"] for chosen in report["cuts"]["chosen"]] == [2, 4]
    assert report["cuts"]["chosen"][0]["crossings"] == [{"name": "layer.1", "dtype": "F32", "shape": ["B", "L", 64]}]


def test_cuts_and_proof_can_be_left_out(model: Path) -> None:
    result = shardhub("plan", model, "--cuts", "2", "--no-proof")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "cuts and proof were not checked, as requested"
    assert "cuts allowed" not in result.stdout


def test_table_is_shown_without_mlx(model: Path, tmp_path: Path) -> None:
    """Where MLX cannot be imported the table is shown, with a note of what was not checked."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("raise ImportError('libmlx.so: cannot open shared object file')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = nodes.shardhub("plan", model, "--stages", 2, env={"PYTHONPATH": path})
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1].split()[:2] == ["0", "0-2"]
    assert "cuts and proof were not checked: MLX cannot be imported here" in result.stdout
    assert "libmlx.so" in result.stdout
    failed = nodes.shardhub("split", model, tmp_path / "out", "--stages", 2, env={"PYTHONPATH": path})
    assert failed.returncode == 2
    assert "Try: Run `shardhub doctor`." in failed.stderr
    assert not (tmp_path / "out").exists()


def test_model_alone_is_described(model: Path) -> None:
    """Without a cut, the model, its allowed cuts and the next command are shown."""
    result = shardhub("plan", model)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"llama, {tiny.NUM_LAYERS} layers, ")
    assert "256 B a token across a cut" in result.stdout
    assert "cuts allowed before any layer" in result.stdout
    assert "--stages N" in result.stderr


def test_growing_cut_is_avoided_and_taken_when_asked_for(growing: Path) -> None:
    """--stages keeps to cuts where nothing grows; --cuts takes any, with the bytes of each token."""
    chosen = json.loads(shardhub("plan", growing, "--stages", 3, "--json").stdout)
    assert [stage["start"] for stage in chosen["stages"]] == [0, 1, 2]
    assert chosen["report"]["cuts"]["growing"] == [3, 4, 5, 6, 7]
    asked = shardhub("plan", growing, "--cuts", "4", "--context", "1000")
    assert asked.exit_code == 0, asked.stderr
    assert "note: What crosses before layer 4 grows with the context:" in asked.stdout
    assert "with each token at 1,000 positions" in asked.stdout
    assert "cuts allowed before layers 1, 2; before 3-7 what crosses grows" in asked.stdout
    assert "layer.3.kwargs.shared.compress_kv F32[B, N, 32]" in asked.stdout
    verdict, batch = asked.stdout.splitlines()[-2:]
    assert verdict.startswith("proven by graph: 2 stages")
    assert batch.startswith("not proven for several sessions in one batch: ")


def refused(folder: Path, *texts: str) -> None:
    """Check that the table is shown with a refusal of one screen, as text and as JSON, and that nothing is split."""
    result = shardhub("plan", folder, "--stages", 2)
    assert result.exit_code == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.splitlines()[0].split()[:2] == ["stage", "layers"]
    assert "not proven, so it would not be split" in result.stdout.splitlines()[-1]
    for text in texts:
        assert text in result.stderr, result.stderr
    as_json = shardhub("plan", folder, "--stages", 2, "--json")
    assert as_json.exit_code == 1
    proof = json.loads(as_json.stdout)["report"]["proof"]
    assert proof["state"] == "refused"
    assert proof["error"]["what"] in result.stdout
    tiny.save_tokenizer(folder)
    split = shardhub("split", folder, folder.parent / "out", "--stages", 2)
    assert split.exit_code == 1
    assert not (folder.parent / "out").exists()


def test_unknown_architecture_is_planned_and_refused(model: Path, tmp_path: Path) -> None:
    """The table is made from headers, even for an architecture that mlx-lm does not know."""
    folder = tmp_path / "unknown"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no_such_model"}))
    refused(folder, "no_such_model", "pip install --upgrade mlx-lm")


def test_config_and_weights_that_disagree_are_refused(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    refused(folder, "does not match config.json", "Why: ")


def test_layers_that_run_twice_are_refused(tmp_path: Path) -> None:
    """The refusal says what is right with the model, too."""
    refused(
        saved(tmp_path / "looped", CONFIGS["nanbeige"]),
        "does not run each layer exactly once",
        "its tensors match config.json",
    )
