"""Splitting checkpoints in publishers' formats: computed files are made, kept and recognised like copied ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardhub.checkpoint.header import read_header
from shardhub.errors import UsageError, WeightFileError
from shardhub.manifest import Source
from shardhub.shard import read_shard
from shardhub.splitting.journal import JOURNAL_FILE
from shardhub.splitting.split import SplitResult, preview, split
from tests import originals
from tests.cut import dissected
from tests.selection import variants

ROOT = Path(__file__).parents[2]
FOLDER = Source(repo=None, commit=None)


def _split(model: Path, out: Path, cuts: tuple[int, ...] = (2, 4), **more: Any) -> SplitResult:
    return split(*dissected(model, cuts), out, name="m", source=FOLDER, **more)


def _tree(out: Path) -> dict[str, bytes]:
    """Every visible file below a folder."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.relative_to(out).parts[0].startswith(".")
    }


def _inodes(out: Path) -> dict[str, int]:
    """Finished weight files, visible or hidden."""
    return {
        f"{path.parent.name}/{path.name}": path.stat().st_ino
        for path in out.rglob("*.safetensors")
        if not path.name.startswith(".")
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with single expert tensors, spread over three files."""
    return originals.write("mixtral", tmp_path / "model")


@pytest.mark.parametrize(
    "name",
    variants(
        [
            *("llama", "qwen3_5", "deepseek_v3", "gemma3", "qwen2_vl", "qwen3_vl", "mistral3", "pixtral", "llama4"),
            "kimi_vl",
        ],
        num_default=2,
    ),
)
def test_only_needed_tensors_are_in_shards(name: str, tmp_path: Path) -> None:
    """The shards have the model's own tensors only: no vision tower, no prediction layer, no buffer."""
    checkpoint, contents, stages = dissected(originals.write(name, tmp_path / "model"), (2, 4))
    stored_in: dict[str, int] = {}
    for shard in split(checkpoint, contents, stages, tmp_path / "out", name="m", source=FOLDER).shards:
        for path in shard.folder.glob("*.safetensors"):
            stored_in |= {key: tensor.stop - tensor.start for key, tensor in read_header(path).tensors.items()}
    computed = contents.computed.specs if contents.computed is not None else {}
    assert stored_in.keys() == contents.stored_names.keys() | computed.keys()
    assert not any(word in key for key in stored_in for word in ("vis", "projector", "mtp", "rotary", "layers.61"))
    assert all(stored_in[key] == spec.size_bytes for key, spec in computed.items())


@pytest.mark.parametrize("name", variants(["mixtral", "qwen3_5", "deepseek_v3_fp8"]))
def test_weight_files_are_the_same_in_every_cut(name: str, tmp_path: Path) -> None:
    """Computed or copied, a weight file has the same content in every cut."""
    model = originals.write(name, tmp_path / "model")
    seen: dict[str, bytes] = {}
    for cuts in ((), (1,), (2, 4)):
        for shard in _split(model, tmp_path / f"out-{len(cuts)}", cuts).shards:
            for path in shard.folder.glob("*.safetensors"):
                assert seen.setdefault(path.name, path.read_bytes()) == path.read_bytes()


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_cards_tell_copied_tensors_from_computed_ones(name: str, tmp_path: Path) -> None:
    """A card claims the source's bytes only for copied tensors."""
    result = _split(originals.write(name, tmp_path / "model"), tmp_path / "out")
    num_computed = 0
    for folder in (*(shard.folder for shard in result.shards), result.pipeline):
        last = (folder / "README.md").read_text().rstrip().splitlines()[-1]
        match = re.search(r"byte for byte, but (\d+) tensors are what mlx-lm makes", last)
        assert "byte for byte" in last
        assert bool(match) == originals.ORIGINALS[name].is_computed
        if match and folder != result.pipeline:
            num_computed += int(match[1])
        elif match:
            assert int(match[1]) == num_computed > 0


def test_shards_one_by_one_make_the_same_pipeline(model: Path, tmp_path: Path) -> None:
    """`--only K` for each shard, in any order, gives the pipeline of one whole run."""
    _split(model, tmp_path / "whole")
    for index in (2, 0, 1):
        result = _split(model, tmp_path / "single", only=index)
        assert (result.pipeline is None) == (index != 1)
    assert _tree(tmp_path / "single") == _tree(tmp_path / "whole")


def test_second_run_computes_nothing(model: Path, tmp_path: Path) -> None:
    """Finished files are recognised by their key; without the journal they are computed again and compared."""
    out = tmp_path / "out"
    _split(model, out)
    before = _inodes(out)
    assert preview(*dissected(model, (2, 4)), out, name="m", source=FOLDER).read_bytes == 0
    assert all(shard.already_there for shard in _split(model, out).shards)
    (out / JOURNAL_FILE).unlink()
    assert all(shard.already_there for shard in _split(model, out).shards)
    assert _inodes(out) == before


def test_other_experts_are_seen(model: Path, tmp_path: Path) -> None:
    """A shard computed from other weights is refused, even if nothing else changed."""
    out = tmp_path / "out"
    _split(model, out)
    path = model / "model-00001-of-00003.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError):
        _split(model, out)


def test_source_that_changes_meanwhile_is_refused(model: Path, tmp_path: Path) -> None:
    """A source file that is replaced after its header was read makes no shard."""
    checkpoint, contents, stages = dissected(model, (2,))
    path = model / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes())
    with pytest.raises(WeightFileError, match="changed since its header was read"):
        split(checkpoint, contents, stages, tmp_path / "out", name="m", source=FOLDER)
    assert _tree(tmp_path / "out") == {}


# Kills the process, as `kill -9` does, just before the N-th change below the output folder.
_KILLED = """
import os, sys
from pathlib import Path
from tests.splitting.test_original_checkpoints import _split
count = 0
def hook(event, arguments):
    global count
    if event in ("open", "os.rename", "os.mkdir", "os.remove") and sys.argv[2] in str(arguments[0]):
        count += 1
        if count == int(sys.argv[3]):
            os.kill(os.getpid(), 9)
Path(sys.argv[2]).mkdir(exist_ok=True)
sys.addaudithook(hook)
_split(Path(sys.argv[1]), Path(sys.argv[2]))
print(count)
"""
_MEMORY = """
import re, resource, sys
from pathlib import Path
from tests.splitting.test_original_checkpoints import _split
_split(Path(sys.argv[1]), Path(sys.argv[2]), (1,))
status = Path("/proc/self/status")
if status.exists():
    print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )


def test_kill_loses_nothing(model: Path, tmp_path: Path) -> None:
    """A split killed among computed files leaves no half shard; the next run keeps finished files and ends right."""
    whole = tmp_path / "whole"
    done = _child(_KILLED, str(model), str(whole), "0")
    assert done.returncode == 0, done.stderr
    expected, num_steps = _tree(whole), int(done.stdout)
    num_kept = 0
    for step in range(10, num_steps, num_steps // 4):
        out = tmp_path / f"out-{step}"
        killed = _child(_KILLED, str(model), str(out), str(step))
        assert killed.returncode == -9, killed.stderr
        for folder in out.glob("m-shard-*"):
            read_shard(folder)
        finished = set(_inodes(out).values())
        _split(model, out)
        num_kept += len(finished & set(_inodes(out).values()))
        assert _tree(out) == expected
    assert num_kept > 10


def test_memory_is_flat(tmp_path: Path) -> None:
    """A model four times as large takes no more memory: one tensor and its sources."""
    peaks = []
    for num_layers in (2, 8):
        config = {
            **originals.ORIGINALS["mixtral"].config,
            "num_hidden_layers": num_layers,
            "hidden_size": 512,
            "intermediate_size": 1024,
            "num_local_experts": 8,
        }
        model = originals.write_config(config, originals.ORIGINALS["mixtral"].undo, tmp_path / f"model-{num_layers}")
        done = _child(_MEMORY, str(model), str(tmp_path / f"out-{num_layers}"))
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    layer_bytes = 3 * 8 * 512 * 1024 * 4
    assert peaks[1] - peaks[0] < layer_bytes
