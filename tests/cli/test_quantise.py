"""`--q-bits` and the options beside it: a model of floats quantised while it is split, from a folder and from a Hub."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import Result
from huggingface_hub import HfApi
from mlx_lm.convert import convert
from typer.testing import CliRunner

from shardhub.cli.app import app
from shardhub.localhub.server import RunningHub
from shardhub.manifest import SourceQuantization
from shardhub.shard import read_pipeline, read_shard
from tests import forks, originals
from tests.hub.pushing import OVER_LFS, Wire

pytestmark = OVER_LFS
OPTIONS = ("--q-bits", "4", "--q-group-size", "32")
RECORD = SourceQuantization(bits=4, group_size=32, mode="affine")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two layers in bfloat16 with its experts as single tensors, and a licence."""
    original = originals.ORIGINALS["mixtral"]
    config = {**original.config, "num_hidden_layers": 2}
    folder = originals.write_config(
        config, original.undo, tmp_path_factory.mktemp("quantise") / "model", dtype=mx.bfloat16
    )
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache's folder."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def command(api: HfApi, cache: Path) -> Callable[..., Result]:
    """Runs `shardhub` as ann, without a terminal, in this process: MLX is imported once."""
    environment = {"HF_ENDPOINT": api.endpoint, "HF_TOKEN": str(api.token), "SHARDHUB_CACHE": str(cache)}

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(part) for part in arguments], env=environment)

    return run


@pytest.fixture(scope="module")
def made(command: Callable[..., Result], model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, quantised and split in two; nobody changes it."""
    out = tmp_path_factory.mktemp("made")
    done = command("split", model, out, "--cuts", "1", "--name", "m", "--json", *OPTIONS)
    assert done.exit_code == 0, done.stderr
    assert "4 bits, affine, in groups of 32" in done.stderr
    parity = json.loads(done.stdout)["parity"]
    assert (parity["tokens_equal"], parity["max_abs_logit_difference"]) == (64, 0.0)
    return out


@pytest.fixture(scope="module")
def repo(api: HfApi, model: Path) -> str:
    """It on the Hub, as floats."""
    name: str = api.create_repo("ann/floats", private=False).repo_id
    api.upload_folder(repo_id=name, folder_path=model)
    return name


def _weight_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("m-shard-*/*.safetensors"))
    }


def test_shards_are_those_of_the_converted_model(
    command: Callable[..., Result], model: Path, made: Path, tmp_path: Path
) -> None:
    """The same weight files, proof and quantisation as when mlx_lm.convert's folder is split."""
    with contextlib.redirect_stdout(io.StringIO()):
        convert(str(model), str(tmp_path / "converted"), quantize=True, q_bits=4, q_group_size=32)
    done = command("split", tmp_path / "converted", tmp_path / "out", "--cuts", "1", "--name", "m", "--no-parity")
    assert done.exit_code == 0, done.stderr
    assert _weight_files(made) == _weight_files(tmp_path / "out")
    for index in (0, 1):
        own, other = (read_shard(folder / f"m-shard-{index}") for folder in (made, tmp_path / "out"))
        assert own.stage.quantization == other.stage.quantization
        assert own.stage.catalogue_digest == other.stage.catalogue_digest
        assert (
            json.loads((own.folder / "proof.json").read_text())["graph_hash"]
            == (json.loads((other.folder / "proof.json").read_text())["graph_hash"])
        )
        configs = [json.loads((shard.folder / "config.json").read_text()) for shard in (own, other)]
        for field in ("quantization", "quantization_config"):
            assert configs[0][field] == configs[1][field]


def test_documents_and_cards_state_the_quantisation(made: Path) -> None:
    """Manifest, stages and cards state how it was quantised, and the pipeline's config.json is the quantised one."""
    pipeline = read_pipeline(made / "m-pipeline")
    assert pipeline.manifest.source.quantized == RECORD
    assert json.loads((pipeline.folder / "config.json").read_text())["quantization"]["bits"] == 4
    for folder in (made / "m-shard-0", made / "m-shard-1", pipeline.folder):
        last = (folder / "README.md").read_text().rstrip().splitlines()[-1]
        assert "quantised while it was split" in last
        assert "(4 bits, affine, in groups of 32)" in last
        assert "byte for byte" not in last
    assert read_shard(made / "m-shard-1").stage.source.quantized == RECORD


def test_second_run_computes_nothing(command: Callable[..., Result], model: Path, made: Path) -> None:
    """Shards in place are left alone; those with other bits are another model's."""
    again = command("split", model, made, "--cuts", "1", "--name", "m", "--json", *OPTIONS)
    assert again.exit_code == 0, again.stderr
    assert all(shard["already_there"] for shard in json.loads(again.stdout)["shards"])
    refused = command("split", model, made, "--cuts", "1", "--name", "m", "--no-parity", "--q-bits", "8")
    assert refused.exit_code == 2
    assert "already exists with other contents" in refused.stderr


def test_hub_model_is_quantised_by_ranges(
    command: Callable[..., Result], api: HfApi, repo: str, made: Path, cache: Path, tmp_path: Path
) -> None:
    """Pushed or split from a Hub, the files are those of the folder, and no weight file of the source is kept."""
    split = command("split", repo, tmp_path / "out", "--cuts", "1", "--name", "m", "--json", *OPTIONS)
    assert split.exit_code == 0, split.stderr
    assert json.loads(split.stdout)["parity"]["tokens_equal"] == 64
    assert _weight_files(tmp_path / "out") == _weight_files(made)
    pushed = command("split-and-push", repo, "--cuts", "1", "--name", "m", "--check-weights", "--json", *OPTIONS)
    assert pushed.exit_code == 0, pushed.stderr
    for path, data in _weight_files(made).items():
        shard, file = path.split("/")
        assert Path(api.hf_hub_download(f"ann/{shard}", file)).read_bytes() == data
    assert json.loads(pushed.stdout)["uploaded_bytes"] == sum(map(len, _weight_files(made).values()))
    kept = [path for path in cache.rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if path.suffix == ".safetensors" or path.parent.name == "blobs"]
    source = json.loads(Path(api.hf_hub_download("ann/m-shard-0", "stage.json")).read_text())["source"]
    assert source == {
        "repo": repo,
        "commit": api.model_info(repo).sha,
        "quantized": RECORD.model_dump(),
    }


def test_floats_are_not_replaced_unasked(command: Callable[..., Result], repo: str) -> None:
    """Quantised shards have a name of their own; given the floats' name, they are refused with the way out."""
    named = command("split-and-push", repo, "--cuts", "1", "--dry-run", "--json", *OPTIONS)
    assert named.exit_code == 0, named.stderr
    assert json.loads(named.stdout)["repos"][-1]["repo"] == "ann/floats-4bit-gs32-pipeline"
    assert "the name is derived" not in named.stderr
    floats = command("split-and-push", repo, "--cuts", "1", "--no-parity")
    assert floats.exit_code == 0, floats.stderr
    refused = command("split-and-push", repo, "--cuts", "1", "--name", "floats", "--dry-run", *OPTIONS)
    assert refused.exit_code == 1
    assert "as the model has them, and these are in 4 bits, affine, in groups of 32" in refused.stderr
    assert "--replace" in refused.stderr


def test_pipeline_is_verified_by_its_source(command: Callable[..., Result], model: Path, made: Path) -> None:
    """Its tensors are computed again from the folder of floats, and so are the whole model's numbers."""
    same = command("verify", made / "m-pipeline", "--source", "--source-folder", model, "--json")
    assert same.exit_code == 0, same.stderr
    report = json.loads(same.stdout)
    assert report["ok"]
    numbers = command("verify", made / "m-pipeline", "--reference", "--source-folder", model, "--json")
    assert numbers.exit_code == 0, numbers.stderr


def test_plan_is_of_the_quantised_model(command: Callable[..., Result], model: Path) -> None:
    """Its stages are proven, and have the sizes of the quantised layers."""
    floats = command("plan", model, "--stages", "2", "--json", "--no-proof")
    quantised = command("plan", model, "--stages", "2", "--json", *OPTIONS)
    assert quantised.exit_code == 0, quantised.stderr
    plans = [json.loads(done.stdout)["report"] for done in (floats, quantised)]
    assert plans[1]["proof"]["state"] == "proven"
    sizes = [sum(stage["size_bytes"] for stage in report["stages"]) for report in plans]
    assert 0.25 < sizes[1] / sizes[0] < 0.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--q-bits", "7"), "--q-bits is 7"),
        (("--q-mode", "mxfp4", "--q-bits", "8"), "With --q-mode mxfp4 it can be only 4"),
        (("--q-group-size", "48"), "--q-group-size is 48"),
        (("--q-recipe", "mixed_4_6", "--q-mode", "mxfp4"), "--q-recipe mixed_4_6 cannot be combined"),
    ],
)
def test_wrong_options_are_refused(
    command: Callable[..., Result], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    """Before the model is looked at, which does not even exist."""
    refused = command("split", "ann/nothing", tmp_path / "out", "--stages", "2", *options)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert not (tmp_path / "out").exists()


def test_quantised_weights_cannot_be_left_in_the_source(command: Callable[..., Result]) -> None:
    """`--by-reference` beside `--q-bits` is refused before the model is looked at, which does not even exist."""
    refused = command("split-and-push", "ann/nothing", "--stages", "2", "--by-reference", *OPTIONS)
    assert refused.exit_code == 2
    assert "cannot be quantised on the way and published by reference" in refused.stderr
    assert "Leave out --by-reference" in refused.stderr


def test_quantised_pipeline_is_not_quantised_again(command: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    """A source with a quantisation is refused, and nothing is written."""
    config = json.loads((model / "config.json").read_text())
    quantised = tmp_path / "quantised"
    quantised.mkdir()
    for path in model.iterdir():
        (quantised / path.name).write_bytes(path.read_bytes())
    record = {"bits": 4, "group_size": 32, "mode": "affine"}
    (quantised / "config.json").write_text(json.dumps({**config, "quantization": record}))
    refused = command("split", quantised, tmp_path / "out", "--stages", "2", *OPTIONS)
    assert refused.exit_code == 1
    assert "is quantised already" in refused.stderr
    assert not (tmp_path / "out").exists()


def _killed(wire: Wire, endpoint: str, is_moment: Callable[[str, str], bool], *arguments: object, **env: str) -> int:
    """Run `shardhub`, and kill it after the first answer of the Hub for which `is_moment`; its exit code."""
    running: list[subprocess.Popen[bytes]] = []

    def after(method: str, path: str) -> None:
        if is_moment(method, path):
            running[0].kill()

    wire.after = after
    try:
        with forks.popen([*map(str, arguments)], env={**os.environ, "HF_ENDPOINT": endpoint, **env}) as process:
            running.append(process)
            return process.wait(300)
    finally:
        wire.reset()


@pytest.mark.parametrize("in_place", ["folder", "hub"])
def test_killed_run_is_finished_by_the_next(
    command: Callable[..., Result],
    served: tuple[RunningHub, Wire],
    api: HfApi,
    repo: str,
    made: Path,
    tmp_path: Path,
    in_place: str,
) -> None:
    """After SIGKILL in the middle of a weight file, or of a push, nothing looks whole; then the bytes are right."""
    hub, wire = served
    env = {"HF_TOKEN": str(api.token), "SHARDHUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    cut = ("--cuts", "1", "--no-parity", *OPTIONS)
    if in_place == "folder":
        arguments = ("split", repo, tmp_path / "out", "--name", "m", *cut)

        def is_moment(method: str, path: str) -> bool:
            return method == "GET" and path.endswith(".safetensors") and bool(list(tmp_path.rglob("*.safetensors")))
    else:
        arguments = ("split-and-push", repo, "--name", "killed", *cut)

        def is_moment(method: str, path: str) -> bool:
            return method == "POST" and "killed-shard-0/commit/" in path

    assert _killed(wire, hub.endpoint, is_moment, *arguments, **env) == -signal.SIGKILL
    assert not (tmp_path / "out" / "m-pipeline").exists()
    assert not api.repo_exists("ann/killed-pipeline")
    done = command(*arguments)
    assert done.exit_code == 0, done.stderr
    for path, data in _weight_files(made).items():
        shard, file = path.split("/")
        if in_place == "folder":
            assert (tmp_path / "out" / path).read_bytes() == data
        else:
            assert Path(api.hf_hub_download(f"ann/{shard.replace('m-', 'killed-')}", file)).read_bytes() == data
