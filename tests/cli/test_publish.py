"""`shardhub split-and-push` and `unpublish` against a local Hub."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import Result
from huggingface_hub import HfApi
from typer.testing import CliRunner

from shardhub.cli.app import app
from shardhub.localhub.server import RunningHub
from tests import cut
from tests.hub.pushing import OVER_LFS, Wire

pytestmark = OVER_LFS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """A tiny model's folder with a licence."""
    folder = cut.tiny_model(tmp_path_factory.mktemp("push") / "model", "llama_sliding")
    tiny_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    return folder


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
    private = command("split-and-push", bare, "--stages", "2", "--private", "--no-parity")
    assert private.exit_code == 0, private.stderr
    meant = command("split-and-push", bare, "--stages", "2", "--name", "meant", "--yes", "--no-parity")
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
    meant = command("split-and-push", "ann/gated", "--stages", "2", "--yes", "--no-parity", "--json")
    assert meant.exit_code == 0, meant.stderr
    assert api.model_info("ann/gated-pipeline").gated == "manual"
    info = api.model_info("ann/gated-pipeline")
    assert "base_model:ann/gated" in (info.tags or [])
    manifest = json.loads(Path(api.hf_hub_download("ann/gated-pipeline", "shardhub.json")).read_text())
    assert manifest["source"] == {"repo": "ann/gated", "commit": api.model_info("ann/gated").sha}


def test_private_source_stays_private(command, api: HfApi, model: Path, tmp_path: Path) -> None:
    """A copy of a private model, or documents that describe it, become public only if that is requested explicitly."""
    api.create_repo("ann/secret", private=True)
    api.upload_folder(repo_id="ann/secret", folder_path=model)
    split = ("split-and-push", "ann/secret", "--cuts", "3", "--no-parity")
    for more in ((), ("--by-reference",)):
        refused = command(*split, "--public", *more)
        assert refused.exit_code == 2
        assert "Its own repo is private" in refused.stderr
    assert not api.repo_exists("ann/secret-shard-0")
    followed = command(*split, "--by-reference")
    assert followed.exit_code == 0, followed.stderr
    assert "ann/secret is private, so its shards and pipeline will be, too" in followed.stderr
    assert api.model_info("ann/secret-pipeline").private
    shown = command(*split, "--public", "--yes", "--name", "shown")
    assert shown.exit_code == 0, shown.stderr
    assert "will be, too" not in shown.stderr
    assert not api.model_info("ann/shown-pipeline").private
    update = command(*split, "--name", "shown", "--by-reference")  # what is public is not made private
    assert update.exit_code == 2
    assert "Its own repo is private" in update.stderr
    assert command("split", "ann/secret", tmp_path / "out", "--cuts", "3", "--no-parity").exit_code == 0
    pushed = command("push", tmp_path / "out", "--name", "pushed")
    assert pushed.exit_code == 0, pushed.stderr
    assert api.model_info("ann/pushed-pipeline").private


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


def test_push_publishes_what_split_wrote(
    command, api: HfApi, served: tuple[RunningHub, Wire], model: Path, tmp_path: Path
) -> None:
    """Repos, cards, documents and weights are those of split-and-push, and parity is not measured again."""
    out = tmp_path / "out"
    token = served[0].hub.token("ann", groups=["bravo", "alpha"])
    assert command("split", model, out, "--cuts", "2").exit_code == 0
    dry = command("push", out, "--namespace", "bravo", "--dry-run", "--json", HF_TOKEN=token)
    assert [row["action"] for row in json.loads(dry.stdout)["repos"]] == ["new"] * 3
    pushed = command("push", out, "--namespace", "bravo", "--json", HF_TOKEN=token)
    assert pushed.exit_code == 0, pushed.stderr
    done = json.loads(pushed.stdout)
    assert "comparing" not in pushed.stderr
    assert done["uploaded_bytes"] + done["copied_bytes"] == sum(json.loads(dry.stdout)["size_bytes"])
    other = command("split-and-push", model, "--cuts", "2", "--namespace", "alpha", HF_TOKEN=token)
    assert other.exit_code == 0, other.stderr
    for suffix in ("shard-0", "shard-1", "pipeline"):
        ours, theirs = (documents(api, f"{namespace}/model-{suffix}") for namespace in ("bravo", "alpha"))
        if suffix == "pipeline":
            records = {path: data for path, data in ours.items() if path.startswith("parity/")}
            written = out / "model-pipeline" / "parity"
            assert {f"parity/{path.name}": path.read_bytes() for path in written.iterdir()} == records
            assert json.loads(ours.pop("shardhub.json"))["stages"][0]["digest"] == done["shards"][0]["stage_digest"]
            theirs.pop("shardhub.json")
        assert {path: data.replace(b"bravo", b"alpha") for path, data in ours.items()} == theirs
    again = command("push", out / "model-pipeline", "--namespace", "bravo", HF_TOKEN=token)
    assert again.exit_code == 0, again.stderr
    assert again.stdout.count("already there") == 3
    verified = command("verify", "bravo/model-pipeline")
    assert verified.exit_code == 0, verified.stdout


def test_push_refuses_what_is_not_as_written(command, api: HfApi, model: Path, tmp_path: Path) -> None:
    """A flipped bit, a missing shard and a folder without a pipeline; no repo is made."""
    out = tmp_path / "out"
    assert command("split", model, out, "--cuts", "2", "--name", "broken", "--no-parity").exit_code == 0
    layer = out / "broken-shard-1" / "layer-00003.safetensors"
    data = bytearray(layer.read_bytes())
    data[-1] ^= 1
    layer.write_bytes(data)
    damaged = command("push", out)
    assert damaged.exit_code == 3
    assert "layer-00003.safetensors is not the weight file that was published" in damaged.stderr
    (out / "broken-shard-0").rename(tmp_path / "elsewhere")
    missing = command("push", out)
    assert missing.exit_code == 2
    assert "The shard of stage 0 is not beside" in missing.stderr
    empty = command("push", tmp_path / "elsewhere")
    assert empty.exit_code == 2
    assert "does not hold a pipeline" in empty.stderr
    assert not [info.id for info in api.list_models(author="ann") if "broken" in info.id]


def test_parity_is_measured_once_for_the_same_stages(command, model: Path, tmp_path: Path) -> None:
    """What split measured is not measured again in another folder or by split-and-push; another cut is."""
    first = command("split", model, tmp_path / "first", "--cuts", "3", "--json")
    second = command("split", model, tmp_path / "second", "--cuts", "3", "--json")
    pushed = command("split-and-push", model, "--cuts", "3", "--name", "measured", "--json")
    for again in (second, pushed):
        assert again.exit_code == 0, again.stderr
        assert "for the same stages" in again.stderr
        assert "comparing" not in again.stderr
        assert json.loads(again.stdout)["parity"] == json.loads(first.stdout)["parity"]
    records = [[path.read_bytes() for path in (tmp_path / out).glob("*/parity/*")] for out in ("first", "second")]
    assert len(records[0]) == 1
    assert records[0] == records[1]
    other = command("split", model, tmp_path / "other", "--cuts", "2")
    assert "comparing" in other.stderr


def test_kept_parity_is_refused_for_changed_weights(command, model: Path, tmp_path: Path) -> None:
    """No manifest gets the numbers of a file whose bytes changed while its size and time did not."""
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    assert command("split", copy, tmp_path / "first", "--cuts", "3").exit_code == 0
    weights = next(copy.glob("*.safetensors"))
    before, data = weights.stat(), bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = command("split", copy, tmp_path / "second", "--cuts", "3")
    assert changed.exit_code == 3
    assert "changed since its stages were compared" in changed.stderr
    assert not (tmp_path / "second" / "copy-pipeline").exists()


def documents(api: HfApi, repo: str) -> dict[str, bytes]:
    """Files of a repo at its newest commit, by path."""
    return {path: Path(api.hf_hub_download(repo, path)).read_bytes() for path in api.list_repo_files(repo)}


@pytest.mark.parametrize(("answer", "is_public"), [("n", False), ("y", True)])
def test_first_public_repos_are_asked_for_on_a_terminal(
    api: HfApi, model: Path, tmp_path: Path, answer: str, is_public: bool
) -> None:
    """The question names the repos; no publishes nothing; a second push, and a private one, ask nothing."""
    name = f"asked-{answer}"
    command = ["split-and-push", str(model), "--stages", "1", "--no-parity", "--name", name, "--cache-dir", tmp_path]
    shown, code = on_terminal(api, command, answer)
    assert f"Make these repos public: ann/{name}-shard-0, ann/{name}-pipeline? [y/N]" in " ".join(shown.split())
    assert code == (0 if is_public else 2)
    assert api.repo_exists(f"ann/{name}-pipeline") is is_public
    again, code = on_terminal(api, [*command, *([] if is_public else ["--private"])], "n")
    assert "[y/N]" not in again
    assert code == 0


def on_terminal(api: HfApi, arguments: Sequence[object], answer: str) -> tuple[str, int]:
    """Run a command with a terminal that answers; returns what it shows, and the exit code."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        result = subprocess.run(
            [sys.executable, "-m", "shardhub", *map(str, arguments)],
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
    return shown.decode(), result.returncode


@pytest.mark.parametrize(("answer", "is_there"), [("no", True), ("", True), ("yes", False)])
def test_unpublish_asks_on_a_terminal(api: HfApi, answer: str, is_there: bool) -> None:
    """Only a yes on the terminal deletes."""
    api.create_repo("ann/asked-pipeline", exist_ok=True)
    shown, code = on_terminal(api, ["unpublish", "ann/asked-pipeline"], answer)
    assert "Delete these repos (1)" in shown
    assert code == (2 if is_there else 0)
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
