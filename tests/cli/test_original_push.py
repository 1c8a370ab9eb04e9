"""`shardhub split-and-push` and `split` of checkpoints in publishers' formats, from a folder and from a Hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from huggingface_hub import HfApi
from typer.testing import CliRunner

from shardhub.cli.app import app
from tests import originals
from tests.hub.pushing import OVER_LFS

pytestmark = OVER_LFS
NAME = "mixtral"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with single expert tensors and a licence."""
    folder = originals.write(NAME, tmp_path_factory.mktemp("push") / "model")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    return folder


@pytest.fixture
def command(api: HfApi, tmp_path: Path):
    """Runs `shardhub` as ann, without a terminal, in this process: MLX is imported once."""
    environment = {"HF_ENDPOINT": api.endpoint, "HF_TOKEN": str(api.token), "SHARDHUB_CACHE": str(tmp_path / "cache")}

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(part) for part in arguments], env=environment)

    return run


def _weight_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("m-shard-*/*.safetensors"))
    }


def test_folder_is_pushed_as_it_is_split(command, api: HfApi, model: Path, tmp_path: Path) -> None:
    """The files on the Hub equal those in the folders; checking weights first uploads nothing twice."""
    split = command("split", model, tmp_path / "out", "--cuts", "2", "--name", "m", "--no-parity")
    assert split.exit_code == 0, split.stderr
    assert "not in MLX's layout" in split.stderr
    pushed = command("split-and-push", model, "--cuts", "2", "--name", "m", "--check-weights", "--no-parity", "--json")
    assert pushed.exit_code == 0, pushed.stderr
    done = json.loads(pushed.stdout)
    for path, data in _weight_files(tmp_path / "out").items():
        shard, file = path.split("/")
        assert Path(api.hf_hub_download(f"ann/{shard}", file)).read_bytes() == data
    assert done["uploaded_bytes"] == sum(map(len, _weight_files(tmp_path / "out").values()))
    again = command("split-and-push", model, "--cuts", "2", "--name", "m", "--check-weights", "--no-parity", "--json")
    assert json.loads(again.stdout)["uploaded_bytes"] == 0


def test_weights_that_are_not_finite_are_not_published(command, api: HfApi, model: Path, tmp_path: Path) -> None:
    """A model whose last layer holds an infinity creates no repo."""
    bad = tmp_path / "bad"
    bad.mkdir()
    for path in model.iterdir():
        (bad / path.name).write_bytes(path.read_bytes())
    path = bad / "model-00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\x80\x7f")
    before = {info.id for info in api.list_models(author="ann")}
    refused = command("split-and-push", bad, "--cuts", "2", "--check-weights", "--no-parity")
    assert refused.exit_code == 3
    assert "not finite" in refused.stderr
    assert {info.id for info in api.list_models(author="ann")} == before
    unsplit = command("split", bad, tmp_path / "out", "--cuts", "2", "--check-weights", "--no-parity", "--name", "m")
    assert unsplit.exit_code == 3
    assert not (tmp_path / "out" / "m-pipeline").exists()


def test_hub_model_is_fetched_to_be_computed(command, api: HfApi, model: Path, tmp_path: Path) -> None:
    """The weight files are fetched once into the cache, with a note of their size; the shards equal the folder's."""
    repo = api.create_repo("ann/original", private=False).repo_id
    api.upload_folder(repo_id=repo, folder_path=model)
    local = command("split", model, tmp_path / "local", "--cuts", "2", "--name", "m", "--no-parity")
    assert local.exit_code == 0, local.stderr
    remote = command("split", repo, tmp_path / "remote", "--cuts", "2", "--name", "m", "--no-parity")
    assert remote.exit_code == 0, remote.stderr
    assert "MB into" in remote.stderr
    assert _weight_files(tmp_path / "remote") == _weight_files(tmp_path / "local")
    assert api.model_info(repo).sha in (tmp_path / "remote" / "m-shard-0" / "stage.json").read_text()
    again = command("split", repo, tmp_path / "again", "--cuts", "3", "--name", "m", "--no-parity")
    assert again.exit_code == 0, again.stderr
    assert "MB into" not in again.stderr
    assert command("prune").exit_code == 0
    assert not list((tmp_path / "cache" / "blobs").iterdir())


def test_split_folders_are_pushed_by_reference(command, api: HfApi, model: Path, tmp_path: Path) -> None:
    """Only computed tensors are uploaded, once for all; nodes get the folders' bytes, and refer has nothing to do."""
    repo = api.create_repo("ann/referred", private=False).repo_id
    api.upload_folder(repo_id=repo, folder_path=model)
    out = tmp_path / "out"
    assert command("split", repo, out, "--cuts", "2", "--name", "m", "--no-parity").exit_code == 0
    pushed = command("push", out, "--by-reference", "--name", "r", "--json")
    assert pushed.exit_code == 0, pushed.stderr
    done = json.loads(pushed.stdout)
    computed = [path for index in (0, 1) for path in weights_on_hub(api, f"ann/r-shard-{index}")]
    assert computed
    assert {name.partition("-")[0] for name, _ in computed} == {"computed"}
    assert done["uploaded_bytes"] + done["copied_bytes"] == sum(size_bytes for _, size_bytes in computed)
    assert done["uploaded_bytes"] < sum(map(len, _weight_files(out).values()))
    direct = command("split-and-push", repo, "--cuts", "2", "--by-reference", "--name", "d", "--no-parity", "--json")
    assert direct.exit_code == 0, direct.stderr
    assert json.loads(direct.stdout)["pipeline_id"] == done["pipeline_id"]
    assert json.loads(direct.stdout)["uploaded_bytes"] == 0
    again = command("push", out, "--by-reference", "--name", "r")
    assert again.stdout.count("already there") == 3
    referred = command("refer", "ann/r-pipeline", "--drop-copies", "--yes", "--json")
    assert referred.exit_code == 0, referred.stderr
    assert {at["action"] for at in json.loads(referred.stdout)["repos"]} == {"already there"}
    pulled = command("pull", "--shards", "ann/r-pipeline", "--json")
    assert pulled.exit_code == 0, pulled.stderr
    fetched = (tmp_path / "cache" / "repos" / "ann").glob("r-shard-*/*/*.safetensors")
    assert sorted(path.read_bytes() for path in fetched) == sorted(_weight_files(out).values())


def weights_on_hub(api: HfApi, repo: str) -> list[tuple[str, int]]:
    """Name and size of each weight file in a repo."""
    files = api.list_repo_tree(repo)
    return [(file.path, file.size) for file in files if file.path.endswith(".safetensors")]  # type: ignore[union-attr]


def test_folders_without_a_source_are_not_pushed_by_reference(command, model: Path, tmp_path: Path) -> None:
    assert command("split", model, tmp_path / "out", "--cuts", "2", "--name", "m", "--no-parity").exit_code == 0
    refused = command("push", tmp_path / "out", "--by-reference")
    assert refused.exit_code == 2
    assert "It was made from a folder" in refused.stderr
