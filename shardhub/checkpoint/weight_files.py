"""Which files hold a model's weights: those that mlx-lm loads, whatever the index says and whatever is beside them.

mlx-lm loads every `model*.safetensors` in the folder, each over the one before in the order the file system lists them,
and reads no index. So the index decides nothing here either. It is compared with the files, because it reveals an
incomplete download.

Source: `mlx_lm.utils.load_model`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from shardhub.checkpoint.header import Header, StoredTensor
from shardhub.checkpoint.tensor_names import place
from shardhub.errors import FormatError, UnsupportedModel, WeightFileError
from shardhub.manifest import MAX_LAYERS, parse_json
from shardhub.naming import WEIGHT_FILE_PATTERN, check_file_name

INDEX_FILE = "model.safetensors.index.json"
LOADED_FILES = "model*.safetensors"
# The largest published index measured (91,000 tensors) has 9 MB.
MAX_INDEX_BYTES = 64 << 20
# Weights in formats that are not read: a pickle can run code, and MLX's GGUF reader is not hardened.
_OTHER_WEIGHTS = (".bin", ".gguf", ".pt", ".pth", ".pkl", ".npz", ".ckpt", ".h5", ".msgpack")
# One file of a numbered set: its stem, its number, and how many files there are.
_NUMBERED = re.compile(r"(.*)-(\d{1,9})-of-(\d{1,9})\.safetensors")
_NAMES_SHOWN = 8
# Places where mlx-lm does not notice a missing tensor: it takes a missing head for a tied one. With a tensor of a layer
# missing it does not load the model, and those of a tower it never loads.
_TAKEN_SILENTLY = ("head", "embedding")


def is_loaded(name: str) -> bool:
    """Whether mlx-lm loads a file of this name; it loads no files in subfolders."""
    return "/" not in name and fnmatchcase(name, LOADED_FILES)


def choose_files(where: str, names: Collection[str]) -> list[str]:
    """The weight files among a model's files, sorted.

    Args:
        where: Folder or repo, for messages.
        names: All files of the model.

    Raises:
        UnsupportedModel: The model has none.
    """
    if files := sorted(filter(is_loaded, names)):
        return files
    if others := sorted(name for name in names if name.endswith(".safetensors") and not name.startswith(".")):
        raise UnsupportedModel(
            f"mlx-lm loads none of the weight files in {where}.",
            why=f"mlx-lm loads {LOADED_FILES} from the folder itself, which has {listed(others)}.",
            hint="If these are the model's weights in mlx-lm's or Hugging Face's layout, rename them to "
            "model.safetensors, or model-00001-of-0000N.safetensors and so on.",
        )
    others = sorted(name for name in names if name.endswith(_OTHER_WEIGHTS))
    raise UnsupportedModel(
        f"{where} has no safetensors files.",
        why=f"It has {listed(others)}, which shardhub does not read."
        if others
        else "It has no weight files of any format.",
        hint="Convert it first: python -m mlx_lm.convert --hf-path MODEL --mlx-path FOLDER",
    )


def merge_tensors(where: str, files: Mapping[str, Header]) -> dict[str, StoredTensor]:
    """Where each tensor is stored, by its name in the checkpoint.

    Raises:
        WeightFileError: Two files hold the same tensor. mlx-lm takes it from the file that the file system lists last,
            which varies between machines.
    """
    tensors: dict[str, StoredTensor] = {}
    twice: dict[tuple[str, str], list[str]] = {}
    for header in files.values():
        for name, tensor in header.tensors.items():
            if name in tensors:
                twice.setdefault((tensors[name].file, tensor.file), []).append(name)
            else:
                tensors[name] = tensor
    if twice:
        (first, second), names = next(iter(twice.items()))
        more = len({name for names in twice.values() for name in names}) - len(names)
        raise WeightFileError(
            f"{where} has the same tensors in two files.",
            why=f"{first} and {second} both hold {listed(names)}"
            f"{f'; other files share {more} more' if more else ''}. mlx-lm would take them from the file that the "
            f"file system lists last.",
            hint="Copy only the files that belong to the model into a folder, and split that folder.",
        )
    return tensors


def read_index(path: Path, data: bytes) -> dict[str, str]:
    """The index's weight_map: file by tensor.

    Args:
        path: Where the index is, for messages.
        data: Its bytes.

    Raises:
        FormatError: The index is malformed, or names a file by anything but a plain name.
    """
    index = parse_json(data, where=str(path), limit_bytes=MAX_INDEX_BYTES)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{path} has no weight_map.", hint="Download the model again.")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise FormatError(f"{path}: weight_map.{name} is {file!r}.", why="It must be a file name.")
    for file in sorted(set(weight_map.values())):
        check_file_name(file, where=str(path), pattern=WEIGHT_FILE_PATTERN)
    return weight_map


def check_complete(
    where: str, weight_map: Mapping[str, str] | None, files: Collection[str], tensors: Collection[str]
) -> tuple[str, ...]:
    """Check the files against the index and their own numbering, and refuse an incomplete download.

    An index none of whose files is present was made for other files: many quantised repos carry their source's index.

    Args:
        where: Folder or repo, for messages.
        weight_map: The index; None without one.
        files: The files that mlx-lm loads.
        tensors: The tensors in these files.

    Returns:
        Remarks for the reader: harmless differences between the index and the files.

    Raises:
        WeightFileError: Files or tensors are missing.
    """
    named = {file for file in (weight_map or {}).values() if is_loaded(file)}
    absent = named.difference(files)
    is_stale = not named.intersection(files)
    if weight_map is None or is_stale:
        _check_numbers(where, files)
    if weight_map is None:
        return ()
    if is_stale:
        others = sorted(set(weight_map.values()))
        return (
            f"{INDEX_FILE} was made for other files ({listed(others)}); as in mlx-lm, these are read: {listed(files)}",
        )
    lost = [f"{name} ({file})" for name, file in weight_map.items() if is_loaded(file) and name not in tensors]
    if lost and absent:
        raise WeightFileError(
            f"{where} is not complete.",
            why=f"{INDEX_FILE} names files that are missing: {listed(absent)}. No other file has {listed(lost)}.",
            hint="Download the model again: an interrupted download leaves such a folder.",
        )
    if any(place(name.partition(" ")[0], MAX_LAYERS) in _TAKEN_SILENTLY for name in lost):
        raise WeightFileError(
            f"{INDEX_FILE} and the weight files of {where} disagree.",
            why=f"It names tensors that no file has: {listed(lost)}.",
            hint=f"Download the model again. If mlx-lm runs the model as it is, delete {INDEX_FILE}, which mlx-lm "
            f"does not read.",
        )
    notes = []
    if lost:
        notes.append(f"{INDEX_FILE} names tensors that no file has: {listed(lost)}")
    if unnamed := set(files) - named:
        notes.append(f"as in mlx-lm, files that {INDEX_FILE} does not name are read too: {listed(unnamed)}")
    if left := {file for file in weight_map.values() if not is_loaded(file)}:
        notes.append(
            f"as in mlx-lm, which loads {LOADED_FILES}, files that {INDEX_FILE} names are not read: {listed(left)}"
        )
    return tuple(notes)


def listed(names: Iterable[str]) -> str:
    """List some names for a message, sorted and shortened."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _NAMES_SHOWN} more" if len(ordered) > _NAMES_SHOWN else ""
    return ", ".join(name[:100] for name in ordered[:_NAMES_SHOWN]) + more


def _check_numbers(where: str, files: Collection[str]) -> None:
    """Refuse an incomplete set of numbered files.

    mlx-lm loads whatever is present. Without a tensor, some of its models run as a different model: a missing head is
    taken for a tied one.
    """
    sets: dict[tuple[str, int], set[int]] = {}
    for name in files:
        if (match := _NUMBERED.fullmatch(name)) is not None:
            sets.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (stem, total), numbers in sets.items():
        if len(numbers) < total:
            missing = sorted(set(range(1, total + 1)) - numbers)[:_NAMES_SHOWN]
            raise WeightFileError(
                f"{where} is not complete.",
                why=f"{len(numbers)} of the {total} files {stem}-N-of-{total} are present; missing: "
                f"{', '.join(map(str, missing))}{' and more' if total - len(numbers) > len(missing) else ''}.",
                hint="Download the model again: an interrupted download leaves such a folder.",
            )
