"""Splitting: exact bytes, the same files in every cut, no visible half-done shard, nothing lost to a kill."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from shardhub.checkpoint.checkpoint import open_checkpoint, verify_weight_file
from shardhub.checkpoint.header import encode_header, read_header
from shardhub.errors import (
    AccessError,
    DiskFull,
    FormatError,
    PlanError,
    UnsupportedModel,
    UsageError,
    WeightFileError,
)
from shardhub.manifest import Manifest, Proof, Stage, config_digest, decode_catalogue, decode_identified, sha256_hex
from shardhub.shard import read_pipeline, read_shard
from shardhub.splitting.journal import JOURNAL_FILE, Journal
from shardhub.splitting.split import SplitProgress, SplitResult, preview, split
from shardhub.splitting.weight_layout import lay_out
from shardhub.tensors import TensorSpec
from tests.checkpoints import FOLDER, contents_of, stages_of, write_checkpoint

HELPER = """
import os, sys
from pathlib import Path
from shardhub.checkpoint.checkpoint import open_checkpoint
from shardhub.errors import ShardhubError
from shardhub.splitting.split import split
from tests.checkpoints import FOLDER, contents_of, stages_of
def run(model, out, cuts, progress=None):
    checkpoint = open_checkpoint(Path(model))
    return split(checkpoint, contents_of(checkpoint), stages_of(checkpoint, cuts), Path(out), name="m", source=FOLDER,
                 progress=progress)
"""


def _split(model: Path, out: Path, cuts: Sequence[int] = (2,), *, name: str = "m", **more: Any) -> SplitResult:
    checkpoint = open_checkpoint(model)
    stages = stages_of(checkpoint, cuts, next_norm=more.pop("next_norm", False))
    return split(checkpoint, contents_of(checkpoint), stages, out, name=name, source=FOLDER, **more)


def _weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def _tree(out: Path) -> dict[str, bytes]:
    """Every visible file below a folder."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.relative_to(out).parts[0].startswith(".")
    }


def _hidden(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.name.startswith(".") and path.name != JOURNAL_FILE)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cuts", [(), (1,), (3,), (1, 2, 3)])
def test_tensors_are_copied_byte_for_byte(tmp_path: Path, cuts: tuple[int, ...], tied: bool) -> None:
    """Every tensor is in a shard with its original bytes, and the shards together hold all tensors."""
    tensors = write_checkpoint(tmp_path / "model", tied=tied, num_files=3)
    result = _split(tmp_path / "model", tmp_path / "out", cuts)
    names: set[str] = set()
    for shard in result.shards:
        for path in shard.folder.glob("*.safetensors"):
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118
                    array = file.get_tensor(name)
                    assert array.dtype == tensors[name].dtype
                    np.testing.assert_array_equal(array, tensors[name])
                    names.add(name)
    assert names == tensors.keys()


@pytest.mark.parametrize("tied", [True, False])
def test_weight_files_are_the_same_in_every_cut(tmp_path: Path, tied: bool) -> None:
    """A weight file has the same content in every cut, so that another cut uploads nothing twice."""
    write_checkpoint(tmp_path / "model", tied=tied)
    seen: dict[str, bytes] = {}
    for count in range(4):
        for number, cuts in enumerate(combinations((1, 2, 3), count)):
            result = _split(tmp_path / "model", tmp_path / f"out-{count}-{number}", cuts)
            for shard in result.shards:
                for name, data in _weights(shard.folder).items():
                    assert seen.setdefault(name, data) == data
    layers = {f"layer-{layer:05d}.safetensors" for layer in range(4)}
    modules = {"model.embed_tokens.safetensors", "model.norm.safetensors"} | (
        set() if tied else {"lm_head.safetensors"}
    )
    assert set(seen) == layers | modules


def test_source_layout_does_not_show(tmp_path: Path) -> None:
    """The same model in one file or in five gives the same shards."""
    for number in (1, 5):
        write_checkpoint(tmp_path / f"model-{number}", num_files=number)
        _split(tmp_path / f"model-{number}", tmp_path / f"out-{number}")
    first, second = (_tree(tmp_path / f"out-{number}") for number in (1, 5))
    assert {name: data for name, data in first.items() if not name.endswith("README.md")} == {
        name: data for name, data in second.items() if not name.endswith("README.md")
    }


def test_tied_table_is_in_the_first_and_the_last_shard(model: Path, tmp_path: Path) -> None:
    """The first and the last shard have the same embedding file, and a middle shard has none."""
    first, middle, last = _split(model, tmp_path / "out", (1, 3)).shards
    name = "model.embed_tokens.safetensors"
    assert (first.folder / name).read_bytes() == (last.folder / name).read_bytes()
    assert not (middle.folder / name).exists()
    assert (first.folder / name).stat().st_ino != (last.folder / name).stat().st_ino


def test_foreign_tensor_comes_alone(model: Path, tmp_path: Path) -> None:
    """A tensor of another stage's layer is copied alone, into a file of its own."""
    first = _split(model, tmp_path / "out", next_norm=True).shards[0]
    header = read_header(first.folder / "layer-00002-part.safetensors")
    assert list(header.tensors) == ["model.layers.2.input_layernorm.weight"]
    assert not (first.folder / "layer-00002.safetensors").exists()


def test_large_group_takes_several_files(model: Path, tmp_path: Path) -> None:
    """A group beyond the limit is divided between tensors, in order; a tensor larger than the limit is not divided."""
    checkpoint = open_checkpoint(model)
    limit = 40
    result = _split(model, tmp_path / "out", max_file_bytes=limit)
    stage = decode_identified(Stage, (result.shards[0].folder / "stage.json").read_bytes(), where="stage.json")
    parts = [file for file in stage.weight_files if file.name.startswith("layer-00000-")]
    assert [file.name for file in parts] == [f"layer-00000-{part:05d}.safetensors" for part in range(len(parts))]
    assert len(parts) > 1
    for file in parts:
        size = sum(checkpoint.tensors[name].spec.size_bytes for name in file.tensors)
        assert size <= limit or len(file.tensors) == 1


def test_names_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    """Two tensor names that differ in letter case only are refused, as macOS would take their files for one."""
    write_checkpoint(tmp_path)
    stored = dict(open_checkpoint(tmp_path).tensors)
    stored["model.NORM.weight"] = stored["model.norm.weight"]
    layer_of = dict.fromkeys(["model.NORM.weight", "model.norm.weight"], None)
    with pytest.raises(UnsupportedModel, match=r"model\.norm"):
        lay_out(0, 1, list(layer_of), layer_of=layer_of, stored=stored)


def test_shard_is_complete_and_consistent(model: Path, tmp_path: Path) -> None:
    """A shard's documents agree with each other, with its weight files and with the model."""
    result = _split(model, tmp_path / "out", next_norm=True)
    config = json.loads((model / "config.json").read_text())
    assert result.pipeline is not None
    assert result.missing == ()
    for shard in result.shards:
        read = read_shard(shard.folder)
        assert read.digest == shard.digest
        assert read.tensors == decode_catalogue(
            (shard.folder / "tensors.json").read_bytes(), digest=read.stage.catalogue_digest, where="tensors.json"
        )
        assert read.stage.config_digest == config_digest(config)
        assert read.hint is not None
        assert (read.hint.index, read.hint.pipeline) == (shard.index, "m-pipeline")
        assert isinstance(read.proof, Proof)
        index = json.loads((shard.folder / "model.safetensors.index.json").read_text())
        for file in read.stage.weight_files:
            verify_weight_file(shard.folder / file.name, file, read.tensors)
            assert {name for name, own in index["weight_map"].items() if own == file.name} == set(file.tensors)
        assert shard.size_bytes == read.stage.size_bytes
        names = {path.name for path in shard.folder.iterdir()}
        assert names == {file.name for file in read.stage.weight_files} | {
            "stage.json",
            "tensors.json",
            "proof.json",
            "config.json",
            "README.md",
            "model.safetensors.index.json",
        }
    pipeline = read_pipeline(result.pipeline)
    assert pipeline.manifest.pipeline_id == result.pipeline_id
    assert [stage.digest for stage in pipeline.manifest.stages] == [shard.digest for shard in result.shards]
    assert [pipeline.shard_folder(shard.index) for shard in result.shards] == [shard.folder for shard in result.shards]


def test_pipeline_carries_known_files_only(model: Path, tmp_path: Path) -> None:
    """Configuration, tokenizer and template are copied beside the manifest; code and anything else is not."""
    for name in ("secrets.txt", "tokenizer.py", "optimizer.bin", "merges.txt", "qwen.tiktoken", ".hidden.tiktoken"):
        (model / name).write_text("x")
    pipeline = _split(model, tmp_path / "out").pipeline
    assert pipeline is not None
    assert {path.name for path in pipeline.iterdir()} == {
        "README.md",
        "page.png",
        "shardhub.json",
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "merges.txt",
        "qwen.tiktoken",
    }
    assert (pipeline / "config.json").read_bytes() == (model / "config.json").read_bytes()


def test_oversized_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    """A tokenizer file larger than any model's is refused before anything is written."""
    with (model / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        _split(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_second_run_leaves_everything_alone(model: Path, tmp_path: Path) -> None:
    """The same split again writes nothing and reports that everything is there, with or without the journal."""
    out = tmp_path / "out"
    first = _split(model, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != JOURNAL_FILE}
    for without_journal in (False, True):
        if without_journal:
            (out / JOURNAL_FILE).unlink()
        again = _split(model, out)
        assert [shard.digest for shard in again.shards] == [shard.digest for shard in first.shards]
        assert all(shard.already_there for shard in again.shards)
        assert again.pipeline_id == first.pipeline_id
        assert {path: path.stat().st_mtime_ns for path in before if path != out} == {
            path: stamp for path, stamp in before.items() if path != out
        }


def _other_weights(model: Path) -> None:
    write_checkpoint(model, seed=1)


def _other_config(model: Path) -> None:
    write_checkpoint(model, config={"rope_theta": 5.0})


@pytest.mark.parametrize(
    ("change", "cuts"),
    [(_other_weights, (2,)), (_other_config, (2,)), (lambda _: None, (1,)), (lambda _: None, (1, 2))],
)
def test_another_shard_is_never_overwritten(
    model: Path, tmp_path: Path, change: Callable[[Path], None], cuts: tuple[int, ...]
) -> None:
    """Other weights, another configuration or another cut under the same name are refused, with what to do."""
    out = tmp_path / "out"
    _split(model, out)
    before = _tree(out)
    change(model)
    with pytest.raises(UsageError, match="`name`"):
        _split(model, out, cuts)
    assert _tree(out) == before
    assert _split(model, out, cuts, name="other").pipeline is not None


def test_other_weights_are_seen_without_the_pipeline(model: Path, tmp_path: Path) -> None:
    """A shard of other weights with the same shapes is recognised by its bytes."""
    out = tmp_path / "out"
    _split(model, out, only=0)
    (out / JOURNAL_FILE).unlink()
    stamps = {path: path.stat() for path in model.glob("*.safetensors")}
    _other_weights(model)
    for path, stamp in stamps.items():
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(UsageError, match="another model"):
        _split(model, out)


def test_damaged_shard_is_named(model: Path, tmp_path: Path) -> None:
    """A folder in place that lacks a weight file is neither trusted nor overwritten."""
    result = _split(model, tmp_path / "out")
    (result.shards[1].folder / "layer-00003.safetensors").unlink()
    with pytest.raises(UsageError, match=r"layer-00003\.safetensors is missing"):
        _split(model, tmp_path / "out")


@pytest.mark.parametrize("folder", ["m-shard-0", "m-pipeline"])
def test_folder_of_something_else_is_not_touched(model: Path, tmp_path: Path, folder: str) -> None:
    """A folder that has a shard's name by chance keeps its content."""
    own = tmp_path / "out" / folder
    own.mkdir(parents=True)
    (own / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match=folder):
        _split(model, tmp_path / "out")
    assert [path.name for path in own.iterdir()] == ["thesis.txt"]
    assert not list((tmp_path / "out").glob("m-shard-1"))


def test_shards_one_by_one_make_the_same_pipeline(model: Path, tmp_path: Path) -> None:
    """`only` writes one shard; the pipeline appears with the last one and equals that of a whole run."""
    whole = _split(model, tmp_path / "whole", (1, 2))
    out = tmp_path / "out"
    assert _split(model, out, (1, 2), only=2).missing == (0, 1)
    assert _split(model, out, (1, 2), only=0).missing == (1,)
    assert not (out / "m-pipeline").exists()
    last = _split(model, out, (1, 2), only=1)
    assert last.missing == ()
    assert [shard.index for shard in last.shards] == [1]
    assert last.pipeline_id == whole.pipeline_id
    assert _tree(out) == _tree(tmp_path / "whole")


def test_shards_of_another_cut_do_not_complete_a_pipeline(model: Path, tmp_path: Path) -> None:
    """A shard of another cut with the same name counts as missing and is left alone."""
    out = tmp_path / "out"
    _split(model, out, (1,), only=0)
    before = _tree(out)
    result = _split(model, out, (2,), only=1)
    assert result.missing == (0,)
    assert result.pipeline is None
    assert {name: data for name, data in _tree(out).items() if name.startswith("m-shard-0")} == before


@pytest.mark.parametrize("only", [-1, 2, 99])
def test_shard_that_does_not_exist_is_refused(model: Path, tmp_path: Path, only: int) -> None:
    """--only takes numbers from 0 to the last shard."""
    with pytest.raises(UsageError, match="0 to 1"):
        _split(model, tmp_path / "out", only=only)


@pytest.mark.parametrize("name", ["", "a/b", "..", "../x", "a" * 200, "nul\0"])
def test_unsafe_name_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    """A pipeline's name cannot lead out of the folder."""
    with pytest.raises(FormatError):
        _split(model, tmp_path / "out", name=name)


def test_stages_that_do_not_cover_are_refused(model: Path, tmp_path: Path) -> None:
    """A gap between stages is refused even if the caller made it."""
    checkpoint = open_checkpoint(model)
    first, second = stages_of(checkpoint, (2,))
    for stages in ([second], [first], [first, first]):
        with pytest.raises(PlanError):
            split(checkpoint, contents_of(checkpoint), stages, tmp_path / "out", name="m", source=FOLDER)


def test_preview_tells_what_the_split_does(model: Path, tmp_path: Path) -> None:
    """The preview writes nothing and states what a split reads and writes; afterwards it says that nothing is left."""
    out = tmp_path / "out"
    checkpoint = open_checkpoint(model)
    arguments: Any = (checkpoint, contents_of(checkpoint), stages_of(checkpoint, (2,)), out)
    before = preview(*arguments, name="m", source=FOLDER)
    assert not out.exists()
    progress: list[SplitProgress] = []
    result = _split(model, out, progress=progress.append)
    shared = (out / "m-shard-0" / "model.embed_tokens.safetensors").stat().st_size
    assert [stage.size_bytes for stage in before.stages] == [shard.size_bytes for shard in result.shards]
    assert before.write_bytes == sum(shard.size_bytes for shard in result.shards)
    assert before.read_bytes == before.write_bytes - shared == progress[-1].done_bytes == progress[-1].total_bytes
    assert before.write_bytes < before.need_bytes <= before.free_bytes
    after = preview(*arguments, name="m", source=FOLDER)
    assert (after.read_bytes, after.write_bytes) == (0, 0)
    assert all(stage.already_there for stage in after.stages)


def _child(code: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, **(env or {})}
    return subprocess.run(
        [sys.executable, "-c", HELPER + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )


# Kills the process, as `kill -9` does, just before the N-th time it opens, renames, removes or makes a name below the
# output folder.
_KILLED = """
count = 0
def hook(event, arguments):
    global count
    if event in ("open", "os.rename", "os.mkdir", "os.remove") and sys.argv[2] in str(arguments[0]):
        count += 1
        if count == int(sys.argv[3]):
            os.kill(os.getpid(), 9)
Path(sys.argv[2]).mkdir(exist_ok=True)
sys.addaudithook(hook)
run(sys.argv[1], sys.argv[2], (1, 3))
print(count)
"""


def test_kill_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    """A split killed before any step that changes the disk leaves no half shard; the next run ends right."""
    write_checkpoint(tmp_path / "model", num_layers=4, num_files=1)
    whole = tmp_path / "whole"
    done = _child(_KILLED, str(tmp_path / "model"), str(whole), "0")
    assert done.returncode == 0, done.stderr
    expected, num_steps = _tree(whole), int(done.stdout)
    assert num_steps > 30
    # Every step would take a minute: a stride that is odd reaches all kinds of steps.
    for step in [1, 2, 3, *range(4, num_steps, 7), num_steps - 1, num_steps]:
        out = tmp_path / f"out-{step}"
        killed = _child(_KILLED, str(tmp_path / "model"), str(out), str(step))
        assert killed.returncode == -9, killed.stderr
        for folder in out.glob("m-shard-*"):
            read_shard(folder)
            assert {f"{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()}.items() <= (
                expected.items()
            )
        _split(tmp_path / "model", out, (1, 3))
        assert _tree(out) == expected
        assert _hidden(out) == []


def test_second_kill_is_survived(tmp_path: Path) -> None:
    """Repeatedly killed runs get further each time, until one finishes with the right bytes."""
    write_checkpoint(tmp_path / "model", num_files=1)
    _split(tmp_path / "model", tmp_path / "whole", (1, 3))
    out, codes = tmp_path / "out", []
    while not codes or codes[-1] != 0:
        codes.append(_child(_KILLED, str(tmp_path / "model"), str(out), "28").returncode)
        assert len(codes) < 30
    assert codes.count(-9) >= 2
    assert _tree(out) == _tree(tmp_path / "whole")


def test_finished_files_are_not_copied_again(model: Path, tmp_path: Path) -> None:
    """After a kill only unfinished files are read again."""
    out = tmp_path / "out"

    class Stop(Exception):
        pass

    def stop(state: SplitProgress) -> None:
        if state.file == "layer-00002.safetensors":
            raise Stop

    with pytest.raises(Stop):
        _split(model, out, progress=stop)
    seen: list[str] = []
    _split(model, out, progress=lambda state: seen.append(state.file))
    assert "layer-00002.safetensors" in seen
    assert "layer-00000.safetensors" not in seen
    _split(model, tmp_path / "whole")
    assert _tree(out) == _tree(tmp_path / "whole")


def test_finished_files_of_other_weights_are_not_taken(model: Path, tmp_path: Path) -> None:
    """If the model changed after a kill, no file of the broken run gets into the shards, even if it changes back."""
    out = tmp_path / "out"
    originals = {path: (path.read_bytes(), path.stat()) for path in model.glob("*.safetensors")}

    def stop_at(file: str) -> Callable[[SplitProgress], None]:
        def stop(state: SplitProgress) -> None:
            if state.file == file:
                raise InterruptedError

        return stop

    with pytest.raises(InterruptedError):
        _split(model, out, progress=stop_at("layer-00003.safetensors"))
    _other_weights(model)
    with pytest.raises(InterruptedError):
        _split(model, out, progress=stop_at("layer-00001.safetensors"))
    for path, (data, stamp) in originals.items():
        path.write_bytes(data)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    _split(model, out)
    _split(model, tmp_path / "whole")
    assert _tree(out) == _tree(tmp_path / "whole")


def test_source_that_changes_meanwhile_is_refused(model: Path, tmp_path: Path) -> None:
    """A weight file that is replaced after its header was read is not copied by outdated ranges."""
    checkpoint = open_checkpoint(model)
    stages = stages_of(checkpoint, (2,))
    write_checkpoint(model, seed=1, rows=32)
    with pytest.raises(WeightFileError, match="changed"):
        split(checkpoint, contents_of(checkpoint), stages, tmp_path / "out", name="m", source=FOLDER)
    assert _tree(tmp_path / "out") == {}


def test_two_splits_do_not_share_a_folder(model: Path, tmp_path: Path) -> None:
    """While one split writes to a folder another is refused."""
    (tmp_path / "out").mkdir()
    with Journal(tmp_path / "out"), pytest.raises(UsageError, match="Another split"):
        _split(model, tmp_path / "out")


def test_missing_tensor_is_refused(model: Path, tmp_path: Path) -> None:
    """A tensor that the checkpoint lacks is named before anything is written."""
    checkpoint = open_checkpoint(model)
    tensors = {name: own for name, own in checkpoint.tensors.items() if name != "model.norm.weight"}
    poorer = replace(checkpoint, tensors=tensors)
    stages = stages_of(checkpoint, (2,))
    with pytest.raises(WeightFileError, match=r"model\.norm\.weight"):
        split(poorer, contents_of(checkpoint), stages, tmp_path / "out", name="m", source=FOLDER)


def test_renamed_tensors_get_their_final_names(model: Path, tmp_path: Path) -> None:
    """A tensor stored under another name is copied under its final one."""
    checkpoint = open_checkpoint(model)
    stored = checkpoint.tensors["model.norm.weight"]
    tensors = {("old.norm" if name == "model.norm.weight" else name): own for name, own in checkpoint.tensors.items()}
    renamed = replace(checkpoint, tensors=tensors)
    contents = contents_of(checkpoint)
    names = {**contents.stored_names, "model.norm.weight": "old.norm"}
    given = type(contents)(
        num_layers=4, dtype="F16", stored_names=names, layer_of=contents.layer_of, versions=contents.versions
    )
    result = split(renamed, given, stages_of(checkpoint, (2,)), tmp_path / "out", name="m", source=FOLDER)
    path = result.shards[1].folder / "model.norm.safetensors"
    copied = read_header(path).tensors["model.norm.weight"]
    source = (model / stored.file).read_bytes()[stored.start : stored.stop]
    assert path.read_bytes()[copied.start : copied.stop] == source


def test_disk_full_before_the_start(tmp_path: Path) -> None:
    """A split of a model larger than the free space does not begin, sparse files included; both figures are named."""
    model = tmp_path / "model"
    write_checkpoint(model, num_layers=2, num_files=1)
    (model / "model.safetensors.index.json").unlink()
    rows = 2 * shutil.disk_usage(tmp_path).free // 4096
    with (model / "model-large.safetensors").open("wb") as file:
        file.write(encode_header([("lm_head.weight", TensorSpec(dtype="U8", shape=(rows, 4096)))]))
        file.truncate(file.tell() + rows * 4096)
    with pytest.raises(DiskFull, match=r"needed.*free"):
        _split(model, tmp_path / "out", (1,))
    assert _tree(tmp_path / "out") == {}
    assert _hidden(tmp_path / "out") == []


_FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    run(sys.argv[1], sys.argv[2], (2,))
except ShardhubError as error:
    print(type(error).__name__, error)
"""


def test_disk_full_in_the_middle(tmp_path: Path) -> None:
    """When a file cannot be written the split stops, leaves no visible shard, and can be finished later."""
    write_checkpoint(tmp_path / "model", rows=4000)
    out = tmp_path / "out"
    done = _child(_FULL_DISK, str(tmp_path / "model"), str(out), "20000")
    assert done.stdout.startswith("DiskFull"), done.stderr
    assert "run the same command again" in done.stdout
    assert _tree(out) == {}
    assert not list(out.rglob("*.writing"))
    _split(tmp_path / "model", out)
    _split(tmp_path / "model", tmp_path / "whole")
    assert _tree(out) == _tree(tmp_path / "whole")


_FULL_TMPFS = """
import errno
out = Path(sys.argv[2])
filler = out / "filler"
def fill(state):
    if state.file == "layer-00001.safetensors" and not filler.exists():
        with filler.open("wb") as file:
            try:
                while file.write(bytes(4096)):
                    file.flush()
            except OSError as error:
                assert error.errno == errno.ENOSPC
                os.truncate(filler, filler.stat().st_size)
try:
    run(sys.argv[1], str(out / "made"), (2,), fill)
except ShardhubError as error:
    print(type(error).__name__, error)
print(sorted(path.name for path in (out / "made").iterdir()))
filler.unlink()
result = run(sys.argv[1], str(out / "made"), (2,))
print(result.pipeline_id)
"""


def _can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not _can_mount(), reason="a file system of its own needs Linux namespaces")
def test_real_disk_runs_full_and_gets_room_again(tmp_path: Path) -> None:
    """On a file system that another process fills up the split stops; with room again the next run finishes."""
    write_checkpoint(tmp_path / "model", rows=4000)
    expected = _split(tmp_path / "model", tmp_path / "whole").pipeline_id
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "script.py"
    script.write_text(HELPER + _FULL_TMPFS)
    mount = f"mount -t tmpfs -o size=2m tmpfs {disk} && exec {sys.executable} {script} {tmp_path / 'model'} {disk}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        timeout=120,
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("DiskFull The disk is full"), done.stderr
    assert "'m-shard" not in lines[1]
    assert lines[2] == expected


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user may enter, for tests that drop root's rights."""
    # Commands that ran in this process before have set it to a folder of their own user.
    monkeypatch.setattr(tempfile, "tempdir", None)
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # TMPDIR of a worker is a folder of its own user too
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_folder_without_permission_is_refused(public: Path) -> None:
    """A folder without write permission is an access error with its path."""
    write_checkpoint(public / "model")
    for path in (public / "model").iterdir():
        path.chmod(0o644)
    (public / "out").mkdir(mode=0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(AccessError, match="out"):
            _split(public / "model", public / "out")
    finally:
        os.seteuid(user)


def test_output_that_is_a_file_is_refused(model: Path, tmp_path: Path) -> None:
    """A file where the output folder should be is a usage error."""
    (tmp_path / "out").write_text("x")
    with pytest.raises(UsageError, match="not a folder"):
        _split(model, tmp_path / "out")


# Linux lets a child inherit the peak of the process it was forked from in getrusage, but not in VmHWM.
_MEMORY = """
import re, resource
run(sys.argv[1], sys.argv[2], (2,))
status = Path("/proc/self/status")
if status.exists():
    print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_is_flat(tmp_path: Path) -> None:
    """A process that splits a large model takes less than 120 MB, most of it the interpreter's."""
    write_checkpoint(tmp_path / "model", num_layers=20, num_files=1, rows=1 << 20)
    size = (tmp_path / "model" / "model-00001-of-00001.safetensors").stat().st_size
    assert size > 150 << 20
    done = _child(_MEMORY, str(tmp_path / "model"), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 120 << 20


def test_manifest_names_the_files_it_was_made_with(model: Path, tmp_path: Path) -> None:
    """A changed chat template makes another pipeline, and the refusal names the file."""
    result = _split(model, tmp_path / "out")
    assert result.pipeline is not None
    manifest = decode_identified(Manifest, (result.pipeline / "shardhub.json").read_bytes(), where="shardhub.json")
    assert manifest.files["chat_template.jinja"] == sha256_hex((model / "chat_template.jinja").read_bytes())
    (model / "chat_template.jinja").write_text("changed")
    with pytest.raises(UsageError, match=r"chat_template\.jinja"):
        _split(model, tmp_path / "out")
