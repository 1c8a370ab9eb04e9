"""Models whose repo has its own code: refused, or used without it on request; the code is never run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from huggingface_hub import HfApi
from typer.testing import CliRunner

from shardhub.cli.app import app
from tests import cut
from tests.hub.pushing import OVER_LFS, pushing_hub

pytestmark = OVER_LFS
AUTO_MAP = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}


def shardhub(*arguments: object, **env: str) -> Result:
    """Run a command in this process: MLX is imported once."""
    return CliRunner().invoke(app, [str(part) for part in arguments], env=env)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that the model's code would write if it were run."""
    return tmp_path / "mark"


@pytest.fixture
def model(tmp_path: Path, mark: Path, tiny_tokenizer: Callable[[Path], None]) -> Path:
    """A typical published model: mlx-lm has its architecture, and its repo has code for transformers."""
    folder = cut.tiny_model(tmp_path / "model")
    tiny_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": AUTO_MAP}))
    (folder / "modeling_own.py").write_text(f"open({str(mark)!r}, 'w')\nclass OwnConfig: pass\nclass OwnModel: pass\n")
    return folder


def is_without_code(folder: Path) -> bool:
    """Whether nothing below a folder is code or refers to any."""
    texts = [path.read_text() for path in folder.rglob("config.json")]
    assert texts
    return not any("auto_map" in text for text in texts) and not list(folder.rglob("*.py"))


def test_code_is_refused_by_name(model: Path, mark: Path, tmp_path: Path) -> None:
    """Each place with code is named, with the option to go on."""
    for arguments in (("plan", model), ("split", model, tmp_path / "out")):
        result = shardhub(*arguments, "--stages", 2)
        assert result.exit_code == 1
        assert "contains code: auto_map in config.json, modeling_own.py." in result.stderr
        assert "--ignore-code" in result.stderr
    assert not (tmp_path / "out").exists()
    assert not mark.exists()


def test_code_is_left_out_when_asked_to(model: Path, mark: Path, tmp_path: Path) -> None:
    """With the option, shards and pipeline are complete and contain no code; no code was run."""
    result = shardhub("split", model, tmp_path / "out", "--stages", 2, "--ignore-code")
    assert result.exit_code == 0, result.stderr
    assert is_without_code(tmp_path / "out")
    pipeline = tmp_path / "out" / "model-pipeline"
    for options in ((), ("--source", "--source-folder", model), ("--reference", "--source-folder", model), ("--run",)):
        verified = shardhub("verify", pipeline, *options)
        assert verified.exit_code == 0, (options, verified.stdout, verified.stderr)
    again = shardhub("split", model, tmp_path / "out", "--stages", 2, "--ignore-code")
    assert again.stdout.count("already there") == 2
    assert not mark.exists()


def test_code_for_mlx_lm_cannot_be_left_out(model: Path, tmp_path: Path) -> None:
    """Without `model_file` mlx-lm would run another model, so that the option does not help."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_file": "modeling_own.py"}))
    for options in ((), ("--ignore-code",)):
        result = shardhub("split", model, tmp_path / "out", "--stages", 2, *options)
        assert result.exit_code == 1
        assert "model_file" in result.stderr
        assert "--ignore-code" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_code_on_a_hub_is_refused_or_left_out(model: Path, mark: Path, tmp_path: Path) -> None:
    """A Hub model, read by ranges and pushed, is refused or used without its code likewise."""
    with pushing_hub(tmp_path / "hub") as (hub, _):
        api = HfApi(endpoint=hub.endpoint, token=hub.token("ann"))
        api.create_repo("ann/model", private=False)
        api.upload_folder(repo_id="ann/model", folder_path=model)
        env = {"HF_ENDPOINT": api.endpoint, "HF_TOKEN": str(api.token), "SHARDHUB_CACHE": str(tmp_path / "cache")}
        refused = shardhub("split-and-push", "ann/model", "--stages", 2, **env)
        assert refused.exit_code == 1
        assert "auto_map in config.json, modeling_own.py" in refused.stderr
        pushed = shardhub("split-and-push", "ann/model", "--stages", 2, "--ignore-code", **env)
        assert pushed.exit_code == 0, pushed.stderr
        for name in ("model-pipeline", "model-shard-0", "model-shard-1"):
            api.snapshot_download(f"ann/{name}", local_dir=tmp_path / "got" / name)
        assert is_without_code(tmp_path / "got")
        verified = shardhub("verify", "ann/model-pipeline", "--fetch", "--source", **env)
        assert verified.exit_code == 0, verified.stderr
    assert not mark.exists()
