"""Model folders whose weight files, index and numbers disagree, and the expected reading of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests import cut

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class Odd:
    """A way in which a folder can be irregular.

    Attributes:
        change: Makes it so, of a proper folder of two files and an index.
        refusal: Pattern of the refusal; empty where it is read as mlx-lm loads it.
        note: Part of the note to the user.
    """

    change: Callable[[Path], None]
    refusal: str = ""
    note: str = ""


def proper(folder: Path) -> Path:
    """Write a tiny model in two files, with its index."""
    cut.tiny_model(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / INDEX).unlink(missing_ok=True)
    names = sorted(tensors)
    write(folder, FIRST, {name: tensors[name] for name in names[::2]})
    write(folder, SECOND, {name: tensors[name] for name in names[1::2]})
    _index(folder, {name: (FIRST, SECOND)[at % 2] for at, name in enumerate(names)})
    return folder


def write(folder: Path, file: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a weight file."""
    (folder / file).parent.mkdir(exist_ok=True)
    save_file(dict(tensors), folder / file, metadata={"format": "mlx"})


def _index(folder: Path, weight_map: Mapping[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict(weight_map)}))


def _weight_map(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / INDEX).read_text())["weight_map"])


def _all(folder: Path) -> dict[str, np.ndarray]:
    return {**load_file(folder / FIRST), **load_file(folder / SECOND)}


def _one_file(folder: Path, file: str = "model.safetensors") -> None:
    tensors = _all(folder)
    for name in (FIRST, SECOND):
        (folder / name).unlink()
    write(folder, file, tensors)


def _plain(folder: Path) -> None:
    """A regular folder."""


def _stale_index(folder: Path) -> None:
    _one_file(folder)


def _stale_index_of_other_names(folder: Path) -> None:
    _one_file(folder)
    _index(folder, {f"model.language_{name}": file for name, file in _weight_map(folder).items()})


def _unnamed_file(folder: Path) -> None:
    _index(folder, {name: FIRST for name, file in _weight_map(folder).items() if file == FIRST})


def _swapped_in_index(folder: Path) -> None:
    _index(folder, {name: SECOND if file == FIRST else FIRST for name, file in _weight_map(folder).items()})


def _others_beside(folder: Path) -> None:
    other = {name: array + 1 for name, array in _all(folder).items()}
    for file in ("consolidated.safetensors", "adapters.safetensors", "original/model.safetensors"):
        write(folder, file, other)


def _index_names_a_file_that_is_not_loaded(folder: Path) -> None:
    write(folder, "mtp.safetensors", {"mtp.layers.0.weight": np.zeros(3, np.float32)})
    _index(folder, {**_weight_map(folder), "mtp.layers.0.weight": "mtp.safetensors"})


def _absent_file_without_a_tensor_of_its_own(folder: Path) -> None:
    tensors = load_file(folder / SECOND)
    (folder / SECOND).unlink()
    write(folder, "model-second.safetensors", tensors)


def _duplicate_that_differs(folder: Path) -> None:
    write(folder, "model-fixed.safetensors", {HEAD: _all(folder)[HEAD] * 2})


def _duplicate_that_is_equal(folder: Path) -> None:
    write(folder, "model-copy.safetensors", {HEAD: _all(folder)[HEAD]})


def _whole_and_pieces(folder: Path) -> None:
    write(folder, "model.safetensors", _all(folder))


def _broken_download(folder: Path) -> None:
    (folder / SECOND).unlink()


def _broken_download_without_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / SECOND).unlink()


def _broken_download_beside_a_stale_index(folder: Path) -> None:
    _index(folder, dict.fromkeys(_weight_map(folder), "model-00001-of-00001.safetensors"))
    (folder / SECOND).unlink()


def _ghost(folder: Path) -> None:
    _index(folder, {**_weight_map(folder), "model.ghost": FIRST})


def _tower_of_the_original(folder: Path) -> None:
    _index(folder, {**_weight_map(folder), "vision_tower.blocks.0.weight": FIRST})


def _buffers_of_the_original(folder: Path) -> None:
    _index(folder, {**_weight_map(folder), "model.layers.0.self_attn.rotary_emb.inv_freq": SECOND})


def _other_name(folder: Path) -> None:
    _one_file(folder, "weights.safetensors")
    (folder / INDEX).unlink()


def _other_name_in_the_index(folder: Path) -> None:
    _one_file(folder, "pytorch_model.safetensors")
    _index(folder, dict.fromkeys(_weight_map(folder), "pytorch_model.safetensors"))


def _only_in_a_folder(folder: Path) -> None:
    _one_file(folder, "model/model.safetensors")
    (folder / INDEX).unlink()


ODD: dict[str, Odd] = {
    "plain": Odd(change=_plain),
    "stale_index": Odd(change=_stale_index, note="was made for other files"),
    "stale_index_of_other_names": Odd(change=_stale_index_of_other_names, note="was made for other files"),
    "unnamed_file": Odd(change=_unnamed_file, note=f"does not name are read too: {SECOND}"),
    "swapped_in_index": Odd(change=_swapped_in_index),
    "others_beside": Odd(change=_others_beside),
    "index_names_a_file_that_is_not_loaded": Odd(
        change=_index_names_a_file_that_is_not_loaded, note="not read: mtp.safetensors"
    ),
    "absent_file_without_a_tensor_of_its_own": Odd(
        change=_absent_file_without_a_tensor_of_its_own, note="model-second.safetensors"
    ),
    "duplicate_that_differs": Odd(
        change=_duplicate_that_differs, refusal=rf"{FIRST} and model-fixed\.safetensors both hold {HEAD}"
    ),
    "duplicate_that_is_equal": Odd(
        change=_duplicate_that_is_equal, refusal=rf"{FIRST} and model-copy\.safetensors both hold {HEAD}"
    ),
    "whole_and_pieces": Odd(change=_whole_and_pieces, refusal=rf"{FIRST} and model\.safetensors both hold"),
    "broken_download": Odd(change=_broken_download, refusal=f"that are missing: {SECOND}"),
    "broken_download_without_index": Odd(
        change=_broken_download_without_index, refusal=r"1 of the 2 files model-N-of-2 are present; missing: 2"
    ),
    "broken_download_beside_a_stale_index": Odd(
        change=_broken_download_beside_a_stale_index, refusal=r"1 of the 2 files model-N-of-2"
    ),
    "ghost": Odd(change=_ghost, refusal=r"no file has: model\.ghost"),
    "tower_of_the_original": Odd(change=_tower_of_the_original, note="names tensors that no file has"),
    "buffers_of_the_original": Odd(change=_buffers_of_the_original, note="rotary_emb.inv_freq"),
    "other_name": Odd(change=_other_name, refusal=r"model\*\.safetensors .*which has weights\.safetensors"),
    "other_name_in_the_index": Odd(change=_other_name_in_the_index, refusal=r"which has pytorch_model\.safetensors"),
    "only_in_a_folder": Odd(change=_only_in_a_folder, refusal=r"no safetensors files|it has model/model\.safetensors"),
}
