"""The weight files of a model folder: those that mlx-lm loads, or a refusal that names them."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model
from safetensors.numpy import load_file

from shardhub.checkpoint.checkpoint import open_checkpoint
from shardhub.checkpoint.weight_files import is_loaded
from shardhub.errors import ShardhubError, WeightFileError
from tests import weight_folders
from tests.weight_folders import ODD, SECOND

READ = [name for name, odd in ODD.items() if not odd.refusal]
REFUSED = [name for name, odd in ODD.items() if odd.refusal]


@pytest.mark.parametrize("name", READ)
def test_odd_folder_is_read_as_mlx_lm_loads_it(name: str, tmp_path: Path) -> None:
    """Every tensor that upstream's model holds is read from the same bytes as upstream reads it from."""
    odd = ODD[name]
    odd.change(weight_folders.proper(tmp_path))
    checkpoint = open_checkpoint(tmp_path)
    model, _ = load_model(tmp_path, lazy=True)
    loaded = dict(tree_flatten(model.parameters()))
    assert loaded.keys() == checkpoint.tensors.keys()
    for key, stored in checkpoint.tensors.items():
        data = (tmp_path / stored.file).read_bytes()
        assert data[stored.start : stored.stop] == bytes(memoryview(loaded[key]).cast("B"))
    assert odd.note in " ".join(checkpoint.notes)
    assert bool(odd.note) == bool(checkpoint.notes)


@pytest.mark.parametrize("name", REFUSED)
def test_odd_folder_is_refused_by_its_names(name: str, tmp_path: Path) -> None:
    """Where upstream's choice depends on the file system, or tensors are missing, the files and tensors are named."""
    odd = ODD[name]
    odd.change(weight_folders.proper(tmp_path))
    with pytest.raises(ShardhubError, match=odd.refusal) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint


def test_link_to_nothing_is_a_missing_file(tmp_path: Path) -> None:
    """A weight file that is a dangling link is refused, as upstream fails too."""
    weight_folders.proper(tmp_path)
    (tmp_path / SECOND).unlink()
    (tmp_path / SECOND).symlink_to(tmp_path / "blobs" / "none")
    with pytest.raises(WeightFileError, match=SECOND):
        open_checkpoint(tmp_path)


def test_loaded_files_are_those_of_upstreams_pattern(tmp_path: Path) -> None:
    """File names are matched as in upstream's glob, letter case included."""
    names = ["model.safetensors", "model-1.safetensors", "model_mtp.safetensors", "Model.safetensors"]
    names += [
        "models.safetensors",
        "amodel.safetensors",
        ".model.safetensors",
        "model.safetensors.bak",
        "model.SAFETENSORS",
    ]
    for name in names:
        (tmp_path / name).touch()
    assert {name for name in names if is_loaded(name)} == {path.name for path in tmp_path.glob("model*.safetensors")}
    assert not is_loaded("model/model.safetensors")


def test_shape_of_a_tensor_in_two_files_does_not_matter(tmp_path: Path) -> None:
    """A tensor is ambiguous also when the two files give it different shapes."""
    weight_folders.proper(tmp_path)
    tensors = load_file(tmp_path / SECOND)
    name, array = next(iter(tensors.items()))
    weight_folders.write(tmp_path, "model-other.safetensors", {name: array[:1]})
    with pytest.raises(WeightFileError, match=r"model-other\.safetensors both hold"):
        open_checkpoint(tmp_path)
