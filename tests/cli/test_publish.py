"""`shardhub split-and-push` and `unpublish` against a local Hub."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from huggingface_hub import HfApi
from typer.testing import CliRunner

from shardhub.cli.app import app
from shardhub.localhub.server import RunningHub
from tests import cut
from tests.hub.pushing import OVER_LFS, Wire, pushing_hub

pytestmark = OVER_LFS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """A tiny model's folder with a licence."""
    folder = cut.tiny_model(tmp_path_factory.mktemp("push") / "model", "llama_sliding")
    tiny_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningHub, Wire]]:
    with pushing_hub(tmp_path_factory.mktemp("hub")) as served:
        yield served


@pytest.fixture(scope="module")
def api(served: tuple[RunningHub, Wire]) -> HfApi:
    return HfApi(endpoint=served[0].endpoint, token=served[0].token("ann"))


@pytest.fixture
def command(api: HfApi, tmp_path: Path):
    """Runs `shardhub` as ann, without a terminal, in this process: MLX is imported once."""
    environment = {"HF_ENDPOINT": api.endpoint, "HF_TOKEN": str(api.token), "SHARDHUB_CACHE": str(tmp_path / "cache")}

    def run(*arguments: object, **env: str) -> Result:
        return CliRunner().invoke(app, [str(part) for part in arguments], env={**environment, **env})

    return run


def test_split_and_push_then_unpublish(command, api: HfApi, model: Path, served: tuple[RunningHub, Wire]) -> None:
    """Dry run, push, push again, another cut refused and then named, unpublish."""
    dry = command("split-and-push", model, "--cuts", "2", "--dry-run", "--json")
    assert dry.exit_code == 0, dry.stderr
    plan = json.loads(dry.stdout)
    assert [row["repo"] for row in plan["repos"]] == ["ann/model-shard-0", "ann/model-shard-1", "ann/model-pipeline"]
    assert {row["action"] for row in plan["repos"]} == {"new"}
    assert list(api.list_models(author="ann")) == []
    assert "to upload" in dry.stderr

    pushed = command("split-and-push", model, "--cuts", "2", "--json")
    assert pushed.exit_code == 0, pushed.stderr
    done = json.loads(pushed.stdout)
    assert api.model_info("ann/model-pipeline").sha == done["pipeline"]["commit"]
    assert done["uploaded_bytes"] == sum(plan["size_bytes"])
    config = json.loads(Path(api.hf_hub_download("ann/model-shard-1", "config.json")).read_text())
    assert config["shardhub"]["stage_digest"] == done["shards"][1]["stage_digest"]

    again = command("split-and-push", model, "--cuts", "2")
    assert again.exit_code == 0, again.stderr
    assert again.stdout.splitlines() == [f"{row['repo']}  (already there)" for row in plan["repos"]]

    other = command("split-and-push", model, "--cuts", "1")
    assert other.exit_code == 1
    assert "--name" in other.stderr
    assert "--replace" in other.stderr
    assert "Traceback" not in other.stderr
    named = command("split-and-push", model, "--cuts", "1", "--name", "model-b", "--private", "--json")
    assert json.loads(named.stdout)["uploaded_bytes"] == 0
    assert api.model_info("ann/model-b-pipeline").private

    refused = command("unpublish", "ann/model-pipeline")
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr
    assert api.repo_exists("ann/model-pipeline")
    shown = command("unpublish", "ann/model-pipeline", "--dry-run", "--json")
    assert json.loads(shown.stdout)["shards"] == ["ann/model-shard-0", "ann/model-shard-1"]
    gone = command("unpublish", "ann/model-pipeline", "--yes")
    assert gone.exit_code == 0, gone.stderr
    assert {info.id for info in api.list_models(author="ann")} == {
        "ann/model-b-pipeline",
        "ann/model-b-shard-0",
        "ann/model-b-shard-1",
    }


def test_unknown_licence_is_not_published_unasked(command, api: HfApi, model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in model.iterdir():
        if path.name != "README.md":
            (bare / path.name).symlink_to(path)
    refused = command("split-and-push", bare, "--stages", "2")
    assert refused.exit_code == 2
    assert "does not state a licence" in refused.stderr
    assert "--private" in refused.stderr
    assert not api.repo_exists("ann/bare-shard-0")
    private = command("split-and-push", bare, "--stages", "2", "--private")
    assert private.exit_code == 0, private.stderr
    meant = command("split-and-push", bare, "--stages", "2", "--name", "meant", "--yes")
    assert meant.exit_code == 0, meant.stderr
    assert not api.model_info("ann/meant-pipeline").private


def test_gated_source_is_not_published_unasked(command, api: HfApi, model: Path) -> None:
    """Gate, commit and base model of a Hub source are carried on; a public copy must be requested explicitly."""
    api.create_repo("ann/gated", private=False)
    api.upload_folder(repo_id="ann/gated", folder_path=model)
    api.update_repo_settings("ann/gated", gated="manual")
    refused = command("split-and-push", "ann/gated", "--stages", "2")
    assert refused.exit_code == 2
    assert "gated" in refused.stderr
    referring = command("split-and-push", "ann/gated", "--stages", "2", "--by-reference", "--dry-run")
    assert "warning: ann/gated is gated: whoever serves a stage needs a token that can read it" in referring.stderr
    meant = command("split-and-push", "ann/gated", "--stages", "2", "--yes", "--json")
    assert meant.exit_code == 0, meant.stderr
    assert api.model_info("ann/gated-pipeline").gated == "manual"
    info = api.model_info("ann/gated-pipeline")
    assert "base_model:ann/gated" in (info.tags or [])
    manifest = json.loads(Path(api.hf_hub_download("ann/gated-pipeline", "shardhub.json")).read_text())
    assert manifest["source"] == {"repo": "ann/gated", "commit": api.model_info("ann/gated").sha}


def test_model_of_the_hub_is_published_by_reference(command, api: HfApi, model: Path) -> None:
    """Documents only; the shards that are pulled have the identity of copies, and every byte is checked."""
    api.create_repo("ann/whole", private=False)
    api.upload_folder(repo_id="ann/whole", folder_path=model)
    referring = command("split-and-push", "ann/whole", "--stages", "2", "--by-reference", "--json")
    assert referring.exit_code == 0, referring.stderr
    done = json.loads(referring.stdout)
    assert (done["uploaded_bytes"], done["copied_bytes"]) == (0, 0)
    assert "nodes fetch the weights from ann/whole" in referring.stderr
    assert "ranges.json" in api.list_repo_files("ann/whole-shard-0")
    pulled = command("pull", "--shards", "ann/whole-pipeline")
    assert pulled.exit_code == 0, pulled.stderr
    verified = command("verify", "ann/whole-pipeline")
    assert verified.exit_code == 0, verified.stdout
    copied = command("split-and-push", "ann/whole", "--stages", "2", "--name", "copied", "--json")
    assert json.loads(copied.stdout)["pipeline_id"] == done["pipeline_id"]
    folder = command("split-and-push", model, "--stages", "2", "--by-reference", "--name", "folder")
    unasked = command("refer", "ann/copied-pipeline", "--drop-copies")
    assert unasked.exit_code == 2
    assert "--yes" in unasked.stderr
    assert "model.norm.safetensors" in api.list_repo_files("ann/copied-shard-1")
    dropped = command("refer", "ann/copied-pipeline", "--drop-copies", "--yes", "--json")
    assert dropped.exit_code == 0, dropped.stderr
    assert json.loads(dropped.stdout)["dropped_bytes"] > 0
    assert "model.norm.safetensors" not in api.list_repo_files("ann/copied-shard-1")
    verified = command("verify", "ann/copied-pipeline")
    assert verified.exit_code == 0, verified.stdout
    assert folder.exit_code == 2
    assert "--by-reference" in folder.stderr


@pytest.mark.parametrize(("answer", "is_there"), [("no", True), ("", True), ("yes", False)])
def test_unpublish_asks_on_a_terminal(api: HfApi, answer: str, is_there: bool) -> None:
    """Only a yes on the terminal deletes."""
    api.create_repo("ann/asked-pipeline", exist_ok=True)
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        result = subprocess.run(
            [sys.executable, "-m", "shardhub", "unpublish", "ann/asked-pipeline"],
            env={**os.environ, "HF_ENDPOINT": api.endpoint, "HF_TOKEN": str(api.token)},
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            check=False,
        )
        shown = b""
        while select.select([ours], [], [], 0)[0]:  # the process has ended: all that it wrote is there
            shown += os.read(ours, 4096)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"Delete these repos (1)" in shown
    assert result.returncode == (2 if is_there else 0)
    assert api.repo_exists("ann/asked-pipeline") is is_there


def test_push_without_a_token_says_what_to_do(command, model: Path, tmp_path: Path) -> None:
    result = command("split-and-push", model, "--stages", "2", HF_TOKEN="", HF_HOME=str(tmp_path))
    assert result.exit_code == 4
    assert "HF_TOKEN" in result.stderr
    assert "Traceback" not in result.stderr


def test_push_never_shows_the_token(api: HfApi, model: Path) -> None:
    wrong = "hf_" + "x" * 40
    for token in (str(api.token), wrong):
        result = subprocess.run(
            [sys.executable, "-m", "shardhub", "split-and-push", str(model), "--stages=2", "--dry-run", "--debug"],
            env={**os.environ, "HF_ENDPOINT": api.endpoint, "HF_TOKEN": token},
            capture_output=True,
            text=True,
            check=False,
        )
        assert token not in result.stdout + result.stderr
    assert result.returncode == 4
