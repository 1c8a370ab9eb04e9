"""`shardhub verify` on folders, on live nodes, against the source and on a Hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from huggingface_hub import HfApi
from typer.testing import CliRunner

from shardhub.cli.app import app
from shardhub.localhub.server import RunningHub
from shardhub.manifest import Parity, canonical, decode, encode
from shardhub.parity import file_name
from tests import cut, nodes, originals
from tests.hub.pushing import OVER_LFS, Wire, pushing_hub

pytestmark = OVER_LFS


def shardhub(*arguments: object, **env: str) -> Result:
    """Run a command in this process: MLX is imported once."""
    return CliRunner().invoke(app, [str(part) for part in arguments], env=env)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Callable[[Path], None]) -> Path:
    """A tiny model's folder with a tokenizer and a licence."""
    folder = cut.tiny_model(tmp_path_factory.mktemp("verify") / "model")
    tiny_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    return folder


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, split in two by the command; treat it as read-only."""
    out = tmp_path_factory.mktemp("out")
    result = shardhub("split", model, out, "--cuts", "3", "--name", "m", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)["parity"]
    assert (said["num_tokens"], said["tokens_equal"], said["max_abs_logit_difference"]) == (64, 64, 0.0)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` that may be changed."""
    return Path(shutil.copytree(made, tmp_path / "out"))


@pytest.fixture(scope="module")
def served(made: Path) -> Iterator[list[str]]:
    """Options that name two nodes."""
    started = nodes.start((made / "m-shard-0",), (made / "m-shard-1",))
    yield [part for node in started for part in ("--node", node.address)]
    nodes.stop_all(started)


def record_path(out: Path) -> Path:
    [path] = (out / "m-pipeline" / "parity").iterdir()
    return path


def record_of(out: Path) -> Parity:
    return decode(Parity, record_path(out).read_bytes(), where="record")


def replace_record(out: Path, record: Parity) -> None:
    """Replace the record, under the name that its new bytes require."""
    record_path(out).unlink()
    (out / "m-pipeline" / file_name(record)).write_bytes(encode(record))


def flip(path: Path, at: int = -5) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_split_writes_a_record_and_reports_it(made: Path) -> None:
    """The record names the pipeline, the cards quote it, and the documents' digests do not depend on it."""
    record = record_of(made)
    assert record.is_exact
    assert record.made_by == "split"
    manifest = json.loads((made / "m-pipeline" / "shardhub.json").read_text())
    assert "parity" not in json.dumps(manifest)
    for folder in ("m-pipeline", "m-shard-0", "m-shard-1"):
        card = (made / folder / "README.md").read_text()
        assert "64 of 64 tokens, max \\|logit difference\\| 0.0, float32 reference on" in card
        assert f"mlx-lm {record.mlx_lm}" in card


def test_whole_pipeline_verifies(made: Path) -> None:
    """Every document, weight file, the graph and the record has a line, followed by a verdict."""
    result = shardhub("verify", made / "m-pipeline")
    assert result.exit_code == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1] == f"{len(lines) - 1} checks passed"
    weights = [path.name for index in (0, 1) for path in (made / f"m-shard-{index}").glob("*.safetensors")]
    assert all(any(name in line for line in lines) for name in weights)
    assert any("graph: the stages compute what the whole model computes" in line for line in lines)
    assert sum("64 of 64 tokens" in line for line in lines) == 1
    said = json.loads(shardhub("verify", "--manifest", made / "m-pipeline", "--json").stdout)
    assert said["ok"] is True
    assert said["parity"][0]["tokens_equal"] == 64


TAMPERED: dict[str, Callable[[Path], object]] = {
    "layer-00004.safetensors": lambda out: flip(out / "m-shard-1" / "layer-00004.safetensors"),
    "stage.json": lambda out: replace_text(out / "m-shard-0" / "stage.json", '"num_layers":6', '"num_layers":7'),
    "tensors.json": lambda out: replace_text(out / "m-shard-0" / "tensors.json", '"F32"', '"F16"'),
    "proof.json": lambda out: replace_hash(out / "m-shard-1" / "proof.json", "graph_hash"),
    "stage 1: proof.json": lambda out: replace_hash(out / "m-shard-1" / "proof.json", "batched_graph_hash"),
    "config.json": lambda out: replace_text(out / "m-shard-1" / "config.json", '"rope_theta": 1', '"rope_theta": 2'),
    "model.safetensors.index.json": lambda out: replace_text(
        out / "m-shard-1" / "model.safetensors.index.json", "layer-00004", "layer-00005"
    ),
    "tokenizer.json": lambda out: flip(out / "m-pipeline" / "tokenizer.json"),
    "parity": lambda out: replace_text(record_path(out), '"tokens_equal":64', '"tokens_equal":63'),
}


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def replace_hash(path: Path, field: str) -> None:
    proof = json.loads(path.read_text())
    assert proof[field] is not None
    path.write_bytes(canonical({**proof, field: "0" * 64}))


@pytest.mark.parametrize("name", TAMPERED)
def test_change_is_found(name: str, out: Path) -> None:
    """One changed byte, number or word in any file gives exit code 3 with file and both values; the rest is checked."""
    TAMPERED[name](out)
    result = shardhub("verify", out / "m-pipeline")
    assert result.exit_code == 3, result.stdout
    wrong = [line for line in result.stdout.splitlines() if line.startswith("MISMATCH")]
    assert len(wrong) == 1, wrong
    assert name in wrong[0]
    assert any(word in wrong[0] for word in (" says ", " its name says "))
    assert "FAILED" in result.stdout.splitlines()[-1]
    said = json.loads(shardhub("verify", out / "m-pipeline", "--json").stdout)
    assert said["ok"] is False


def test_broken_manifest_is_an_error(out: Path) -> None:
    flip(out / "m-pipeline" / "shardhub.json", 5)
    result = shardhub("verify", out / "m-pipeline")
    assert result.exit_code == 3
    assert "shardhub.json" in result.stderr


def test_absent_shard_is_not_called_right(out: Path) -> None:
    """A missing shard is listed as not checked; the other stage is proven in its place among all layers."""
    shutil.rmtree(out / "m-shard-0")
    result = shardhub("verify", out / "m-pipeline")
    assert result.exit_code == 0, result.stdout
    assert any(line.startswith("not here  stage 0 (layers 0 to 2)") for line in result.stdout.splitlines())
    assert "1 stages are not on this machine and were not checked" in result.stdout.splitlines()[-1]
    assert "graph: " in result.stdout


def test_live_chain_chooses_the_record_s_tokens(made: Path, served: list[str]) -> None:
    """Two nodes in processes of their own get the record's ids in its shapes: 64 of 64, and exactness is promised."""
    result = shardhub("verify", made / "m-pipeline", "--run", *served)
    assert result.exit_code == 0, result.stderr
    assert "the same tokens are promised" in result.stdout
    assert "64 of 64 tokens equal the record's" in result.stdout.splitlines()
    said = json.loads(shardhub("verify", made / "m-pipeline", "--run", *served, "--json").stdout)
    assert (said["tokens_equal"], said["first_difference"], len(said["nodes"])) == (64, None, 2)


def test_live_chain_that_differs_is_reported(out: Path, served: list[str]) -> None:
    """Another id in the record gives exit code 3, with its position and both ids."""
    record = record_of(out)
    tokens = record.prompts[1].tokens
    other = (tokens[-1] + 1) % record.vocab_size
    changed = record.prompts[1].model_copy(update={"tokens": (*tokens[:-1], other)})
    replace_record(out, record.model_copy(update={"prompts": (record.prompts[0], changed)}))
    result = shardhub("verify", out / "m-pipeline", "--run", *served)
    assert result.exit_code == 3, result.stdout + result.stderr
    assert "63 of 64 tokens equal the record's" in result.stdout
    expected = f"prompt 1, token {len(tokens) - 1}: the record has {other}, the chain chose {tokens[-1]}"
    assert result.stdout.splitlines()[-1] == f"first difference: {expected}"


def test_other_class_reports_agreement_only(out: Path, served: list[str]) -> None:
    """The same difference from a record of another machine breaks no promise: exit code 0 with a note."""
    record = record_of(out)
    first, *rest = record.prompts[0].tokens
    changed = record.prompts[0].model_copy(update={"tokens": ((first + 1) % record.vocab_size, *rest)})
    elsewhere = record.numeric_class.model_copy(update={"backend": "metal", "chip": "arm", "cpu": "Apple M2"})
    prompts = (changed, record.prompts[1])
    replace_record(out, record.model_copy(update={"prompts": prompts, "numeric_class": elsewhere}))
    result = shardhub("verify", out / "m-pipeline", "--run", *served)
    assert result.exit_code == 0, result.stderr
    assert "the same tokens are likely but not promised" in result.stdout
    assert "first difference: prompt 0, token 0" in result.stdout
    assert "how far these machines agree" in result.stderr


def test_stages_run_here_where_nobody_serves(made: Path) -> None:
    """Without a node all stages run in this process, as with generate."""
    result = shardhub("verify", made / "m-pipeline", "--run", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["tokens_equal"] == 64
    assert [node["at"] for node in said["nodes"]] == ["this process"]


def test_source_s_bytes_are_compared(model: Path, made: Path, tmp_path: Path) -> None:
    """All tensors equal the source's; a changed byte of the source is named with its tensor; a sample is repeatable."""
    same = shardhub("verify", made / "m-pipeline", "--source", "--source-folder", model, "--json")
    assert same.exit_code == 0, same.stderr
    said = json.loads(same.stdout)
    assert said["num_compared"] == said["num_tensors"] > 50
    other = Path(shutil.copytree(model, tmp_path / "other"))
    flip(other / "model.safetensors")
    from shardhub.checkpoint.header import read_header

    last = list(read_header(other / "model.safetensors").tensors)[-1]
    compared = shardhub("verify", made / "m-pipeline", "--source", "--source-folder", other)
    assert compared.exit_code == 3
    assert compared.stdout.splitlines()[0].startswith(f"MISMATCH  {last}: byte ")
    drawn = [
        shardhub("verify", made / "m-pipeline", "--source", "--source-folder", model, "--tensors", 5, *seed, "--json")
        for seed in ((), ("--seed", "7"), ("--seed", "7"))
    ]
    results = [json.loads(result.stdout) for result in drawn]
    assert [result["num_compared"] for result in results] == [5, 5, 5]
    assert results[1] == results[2]
    assert f"--seed {results[0]['seed']}" in drawn[0].stderr


def test_computed_tensors_are_computed_again_and_compared(tmp_path: Path) -> None:
    """Experts that the split stacked are recomputed: one changed byte of one expert is reported at its place."""
    source = originals.write("mixtral", tmp_path / "source")
    assert shardhub("split", source, tmp_path, "--cuts", "3", "--name", "x", "--no-parity").exit_code == 0
    options = ("verify", tmp_path / "x-pipeline", "--source", "--source-folder", source)
    said = json.loads(shardhub(*options, "--json").stdout)
    assert said["ok"]
    assert said["num_compared"] == said["num_tensors"]
    from shardhub.checkpoint.header import read_header

    path = next(path for path in sorted(source.glob("*.safetensors")) if "experts.1." in str(read_header(path).tensors))
    name, expert = next(item for item in read_header(path).tensors.items() if "experts.1." in item[0])
    flip(path, expert.start + 5)
    compared = shardhub(*options)
    assert compared.exit_code == 3
    [mismatch] = [line for line in compared.stdout.splitlines() if line.startswith("MISMATCH")]
    layer = name.partition(".block_sparse_moe")[0]
    assert mismatch.startswith(f"MISMATCH  {layer}.block_sparse_moe.switch_mlp.")
    assert f"byte {expert.stop - expert.start + 5} of " in mismatch


def test_folder_source_must_be_named(made: Path) -> None:
    result = shardhub("verify", made / "m-pipeline", "--source")
    assert result.exit_code == 2
    assert "--source-folder" in result.stderr


def test_model_beyond_memory_has_no_record(model: Path, tmp_path: Path) -> None:
    """Over the memory budget nothing is run: no record is made, and cards and output say what was proven instead."""
    result = shardhub("split", model, tmp_path, "--cuts", "3", "--memory", "1MB", "--json")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)["parity"]["summary"]
    assert summary.startswith("proven by graph; not run: weights 1.")
    assert summary.endswith("this machine's budget is 1.00 MB")
    assert not (tmp_path / "model-pipeline" / "parity").exists()
    for folder in ("model-pipeline", "model-shard-0", "model-shard-1"):
        assert summary in (tmp_path / folder / "README.md").read_text()
    assert "no parity record" in shardhub("verify", tmp_path / "model-pipeline").stderr
    assert shardhub("verify", tmp_path / "model-pipeline", "--run").exit_code == 2


def test_record_is_made_later(model: Path, out: Path, tmp_path: Path) -> None:
    """A record is made from the shards, or from the source once it is shown to be theirs; never from another model."""
    record_path(out).unlink()
    result = shardhub("verify", out / "m-pipeline", "--reference", "--tokens", 6)
    assert result.exit_code == 0, result.stderr
    assert "6 of 6 tokens" in (out / "m-pipeline" / "README.md").read_text()
    record = record_of(out)
    assert (record.made_by, record.is_exact, record.num_tokens) == ("reference", True, 6)
    record_path(out).unlink()
    of_source = ("verify", out / "m-pipeline", "--reference", "--tokens", 6, "--source-folder")
    assert shardhub(*of_source, model).exit_code == 0
    assert record_of(out).prompts == record.prompts
    other = Path(shutil.copytree(model, tmp_path / "other"))
    flip(other / "model.safetensors")
    refused = shardhub(*of_source, other)
    assert refused.exit_code == 3
    assert "was not made from" in refused.stderr
    assert shardhub(*of_source, model, "--memory", "1MB").exit_code == 6
    shutil.rmtree(out / "m-shard-1")
    assert shardhub("verify", out / "m-pipeline", "--reference").exit_code == 2
    assert shardhub("verify", out / "m-pipeline").exit_code == 0


@pytest.mark.parametrize(
    "options", [("--run", "--source"), ("--node", "h:1"), ("--push",), ("--tensors", "3"), ("--reference", "--push")]
)
def test_options_that_do_not_go_together(made: Path, options: tuple[str, ...]) -> None:
    assert shardhub("verify", made / "m-pipeline", *options).exit_code == 2


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningHub, Wire]]:
    with pushing_hub(tmp_path_factory.mktemp("hub")) as served:
        yield served


def test_record_is_added_on_the_hub(hub: tuple[RunningHub, Wire], model: Path, tmp_path: Path) -> None:
    """A push makes a record, and a later record is a commit of its own; the pipeline stays the same."""
    api = HfApi(endpoint=hub[0].endpoint, token=hub[0].token("ann"))
    env = {"HF_ENDPOINT": api.endpoint, "HF_TOKEN": str(api.token), "SHARDHUB_CACHE": str(tmp_path / "cache")}

    def run(*arguments: object) -> Result:
        result = shardhub(*arguments, **env)
        assert result.exit_code == 0, result.stderr
        return result

    pushed = json.loads(run("split-and-push", model, "--cuts", "3", "--json").stdout)
    assert pushed["parity"]["tokens_equal"] == 64

    def records() -> list[str]:
        return [path for path in api.list_repo_files("ann/model-pipeline") if path.startswith("parity/")]

    assert len(records()) == 1
    assert "64 of 64 tokens" in Path(api.hf_hub_download("ann/model-shard-0", "README.md")).read_text()
    again = run("split-and-push", model, "--cuts", "3")
    assert again.stdout.count("(already there)") == 3

    partly = run("verify", "ann/model-pipeline")
    assert partly.stdout.count("not here  stage") == 2
    assert "64 of 64 tokens" in partly.stdout
    run("verify", "ann/model-pipeline", "--fetch")
    assert shardhub("verify", "ann/model-pipeline", "--reference", **env).exit_code == 2
    result = json.loads(run("verify", "ann/model-pipeline", "--reference", "--push", "--tokens", 4, "--json").stdout)
    assert result["record"]["pipeline_id"] == pushed["pipeline_id"]
    assert len(records()) == 2
    assert "4 of 4 tokens" in Path(api.hf_hub_download("ann/model-pipeline", "README.md")).read_text()
    said = json.loads(run("verify", "ann/model-pipeline", "--json").stdout)
    assert (said["ok"], said["pipeline_id"], len(said["parity"])) == (True, pushed["pipeline_id"], 2)
    assert not [one for one in said["checks"] if one["state"] != "ok"]

    api.create_repo("ann/source")
    api.upload_folder(repo_id="ann/source", folder_path=model)
    run("split-and-push", "ann/source", "--cuts", "3", "--yes")
    assert not [path for path in api.list_repo_files("ann/source-pipeline") if path.startswith("parity/")]
    card = Path(api.hf_hub_download("ann/source-pipeline", "README.md")).read_text()
    assert "proven by graph; not run: the weights" in card
    compared = json.loads(run("verify", "ann/source-pipeline", "--source", "--fetch", "--tensors", 9, "--json").stdout)
    assert (compared["num_compared"], compared["ok"]) == (9, True)

    replaced = run("split-and-push", model, "--cuts", "2", "--replace")
    assert "replace" in replaced.stderr
    assert len(records()) == 1
    run("verify", "ann/model-pipeline")
    run("pull", "ann/model-pipeline", "--shards")
    run("unpublish", "ann/model-pipeline", "--yes")
    assert not api.repo_exists("ann/model-pipeline")
    assert os.listdir(tmp_path / "cache" / "repos" / "ann")
