"""Fields of config.json that mlx-lm reads by another name or never: in `plan`, `split` and the serving commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from shardhub.cli.app import app
from shardhub.manifest import config_digest
from shardhub.shard import read_pipeline, read_shard
from tests import cut


def shardhub(*arguments: object) -> Result:
    """Run a command in this process: MLX is imported once."""
    return CliRunner().invoke(app, [str(part) for part in arguments])


@pytest.fixture
def model(tmp_path: Path, tiny_tokenizer: Callable[[Path], None]) -> Path:
    """A model as transformers 5 writes it."""
    folder = cut.tiny_model(tmp_path / "model")
    tiny_tokenizer(folder)
    change(folder, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    return folder


def change(folder: Path, **fields: Any) -> dict[str, Any]:
    """Set fields of a model's config.json; remove those that are None."""
    config = json.loads((folder / "config.json").read_text()) | fields
    config = {field: value for field, value in config.items() if value is not None or field not in fields}
    (folder / "config.json").write_text(json.dumps(config))
    return config


def test_translated_model_is_published_with_both_names(model: Path, tmp_path: Path) -> None:
    """config.json of pipeline and shards has the original fields and mlx-lm's, digests cover both, nothing warns."""
    source = json.loads((model / "config.json").read_text())
    result = shardhub("split", model, tmp_path / "out", "--stages", 2, "--name", "m")
    assert result.exit_code == 0, result.stderr
    assert (
        "note: config.json: mlx-lm reads these fields under other names; they are set in the published config.json: "
        "rope_theta" in result.stderr
    )
    pipeline = read_pipeline(tmp_path / "out" / "m-pipeline")
    config = json.loads((pipeline.folder / "config.json").read_text())
    assert config == {**source, "rope_theta": 5e5}
    assert pipeline.manifest.config_digest == config_digest(config)
    assert pipeline.manifest.ignored_fields == ()
    assert b"ignored_fields" not in (pipeline.folder / "shardhub.json").read_bytes()
    shard = read_shard(tmp_path / "out" / "m-shard-0")
    assert shard.config["rope_theta"] == 5e5
    for check in ("--source", "--reference"):
        checked = shardhub("verify", pipeline.folder, check, "--source-folder", model)
        assert checked.exit_code == 0, checked.stderr
    generated = shardhub("generate", pipeline.folder, "--prompt", "a", "--max-tokens", 2)
    assert generated.exit_code == 0, generated.stderr
    assert "warning" not in generated.stderr


def test_unread_field_is_refused_and_ignored_on_record(model: Path, tmp_path: Path) -> None:
    """plan and split refuse it with field, value and reason; with --ignore-field manifest, card and start name it."""
    change(model, hidden_act="relu")
    for command in (("plan", model), ("split", model, tmp_path / "out")):
        refused = shardhub(*command, "--stages", 2)
        assert refused.exit_code == 1
        assert 'never reads hidden_act ("relu")' in refused.stderr
        assert "hidden_act: activation of the feed-forward layers; this module computes" in refused.stderr
        assert "--ignore-field hidden_act" in refused.stderr
    assert not (tmp_path / "out").exists()
    arguments = ("--stages", 2, "--ignore-field", "hidden_act")
    report = json.loads(shardhub("plan", model, *arguments, "--json").stdout)["report"]["config"]
    assert report["ignored_fields"] == ["hidden_act"]
    assert report["notes"][-1] == "ignored, so its numbers are not the published model's: hidden_act"
    result = shardhub("split", model, tmp_path / "out", *arguments, "--name", "m", "--no-parity")
    assert result.exit_code == 0, result.stderr
    pipeline = read_pipeline(tmp_path / "out" / "m-pipeline")
    assert pipeline.manifest.ignored_fields == ("hidden_act",)
    card = (pipeline.folder / "README.md").read_text()
    assert "**The numbers are not those of the published model**" in card
    assert "hidden\\_act" in card
    generated = shardhub("generate", pipeline.folder, "--prompt", "a", "--max-tokens", 2)
    assert generated.exit_code == 0, generated.stderr
    assert generated.stderr.count("warning: its numbers are not the published model's") == 1
    checked = shardhub("verify", pipeline.folder, "--source", "--source-folder", model)
    assert checked.exit_code == 0, checked.stderr


def test_field_without_effect_is_reported(model: Path) -> None:
    result = shardhub("plan", model, "--stages", 2, "--no-proof", "--ignore-field", "hidden_size")
    assert result.exit_code == 0
    note = "note: --ignore-field hidden_size has no effect: mlx-lm reads the field, or it changes nothing"
    assert note in result.stderr


def test_window_is_refused_for_sessions_longer_than_it(model: Path) -> None:
    """A window that no layer has affects longer texts only: the planned context decides."""
    change(model, model_type="mistral", sliding_window=64, max_position_embeddings=128)
    within = shardhub("plan", model, "--stages", 2, "--no-proof", "--context", 64)
    assert within.exit_code == 0, within.stderr
    assert "never reads sliding_window (64)" in within.stderr
    assert shardhub("plan", model, "--stages", 2, "--no-proof", "--context", 65).exit_code == 1
