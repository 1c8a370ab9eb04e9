"""A model folder in the layout of mlx-lm or Hugging Face, read by its configuration and safetensors headers only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shardhub.checkpoint.config import parse_config, text_config
from shardhub.checkpoint.header import ByteSource, FileSource, Header, StoredTensor, read_header
from shardhub.checkpoint.weight_files import (
    INDEX_FILE,
    MAX_INDEX_BYTES,
    check_complete,
    choose_files,
    is_loaded,
    listed,
    merge_tensors,
    read_index,
)
from shardhub.errors import DigestMismatch, FormatError, UnsupportedModel, UsageError, WeightFileError
from shardhub.manifest import MAX_DOCUMENT_BYTES, WeightFile
from shardhub.naming import CONFIG_FILE, MANIFEST_FILE, STAGE_FILE, check_is_text
from shardhub.regular_files import opened, read_file
from shardhub.tensors import TensorSpec

# NVIDIA ModelOpt's file with a checkpoint's quantisation; shards carry config.json only.
_MODELOPT_FILE = "hf_quant_config.json"
# Fields of config.json that name code in the repo, for transformers and for mlx-lm.
_CODE_FIELDS = ("auto_map", "model_file")
_READ_BYTES = 4 << 20
_NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model's configuration, headers and files.

    Attributes:
        folder: Folder of its small files: configuration, tokenizer, card.
        where: Its folder or repo, for messages.
        config: config.json.
        files: Headers of the weight files, by file name.
        tensors: Where each tensor is stored, by its name in the checkpoint.
        open_file: Opens a weight file by its name.
        local_file: Returns the path on this disk of a weight file that has the given header; fetches it if necessary.
        notes: Harmless differences between the checkpoint and its index.
        ignored_fields: Fields of config.json that change numbers, that mlx-lm never reads, and that are to be ignored.
        own_code: Files and fields that hold or name code of its own, which is never run.
        made: Contents, by name, of small files that a pipeline carries in place of the folder's.
        left_out: Small files that a pipeline does not carry.
        is_virtual: Whether its weight files exist only while they are read, because their tensors are computed then.
    """

    folder: Path
    where: str
    config: Mapping[str, Any]
    files: Mapping[str, Header]
    tensors: Mapping[str, StoredTensor]
    open_file: Callable[[str], ByteSource]
    local_file: Callable[[str, Header], Path]
    notes: tuple[str, ...] = ()
    own_code: tuple[str, ...] = ()
    ignored_fields: tuple[str, ...] = ()
    made: Mapping[str, bytes] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    is_virtual: bool = False

    @property
    def size_bytes(self) -> int:
        """Size of all tensors, in bytes."""
        return sum(tensor.stop - tensor.start for tensor in self.tensors.values())

    def small_file(self, name: str) -> bytes:
        """Read a file beside the weights, as a pipeline carries it.

        Raises:
            FormatError: The file cannot be read.
        """
        if name in self.made:
            return self.made[name]
        try:
            return read_file(self.folder / name)
        except OSError as error:
            raise FormatError(f"{self.folder / name} cannot be read.", why=f"{error.strerror}.") from error

    def without_code(self) -> Checkpoint:
        """The same checkpoint for mlx-lm's own code: transformers' `auto_map` is left out of its configuration.

        `model_file` stays and is refused when a model is built: without it mlx-lm would run another model.
        """
        if "auto_map" not in self.config:
            return self
        return self.with_config({field: value for field, value in self.config.items() if field != "auto_map"})

    def with_config(self, config: Mapping[str, Any]) -> Checkpoint:
        """The same checkpoint with another configuration, which a pipeline then carries."""
        if config == self.config:
            return self
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        return replace(self, config=config, made={**self.made, CONFIG_FILE: text.encode()})

    def with_files(self, files: Mapping[str, bytes], *, without: Collection[str] = ()) -> Checkpoint:
        """The same checkpoint with other small files, which a pipeline then carries, and without some of its own."""
        return replace(self, made={**self.made, **files}, left_out=self.left_out.union(without))


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a model folder's configuration and headers; no weights are read and none of its code is run.

    Raises:
        UsageError: The folder does not hold a model, or holds a shard or a pipeline.
        UnsupportedModel: Its weights are not in safetensors files that mlx-lm loads.
        FormatError: config.json or the index is malformed.
        WeightFileError: A weight file is missing or malformed, two hold the same tensor, or index and files disagree.
    """
    check_is_text(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.", hint="Give a model folder, or a Hub id such as ORG/MODEL.")
    return read_checkpoint(
        folder,
        # A weight file that is a dangling link is reported as missing, not passed over.
        [path.name for path in folder.iterdir() if path.is_file() or is_loaded(path.name)],
        where=str(folder),
        read_header=lambda name: read_header(folder / name),
        open_file=lambda name: FileSource(folder / name),
        local_file=lambda name, header: _unchanged(folder / name, header),
    )


def read_checkpoint(
    folder: Path,
    names: Collection[str],
    *,
    where: str,
    read_header: Callable[[str], Header],
    open_file: Callable[[str], ByteSource],
    local_file: Callable[[str, Header], Path],
) -> Checkpoint:
    """Read a model whose weight files may be elsewhere.

    Args:
        folder: Folder of its small files.
        names: Names of all its files, including the weights.
        where: Folder or repo, for messages.
        read_header: Reads the header of a weight file by its name.
        open_file, local_file: As `Checkpoint`.

    Raises:
        As `open_checkpoint`.
    """
    _check_is_model(where, names)
    config_path = folder / CONFIG_FILE
    config = parse_config(_read_bounded(config_path, MAX_DOCUMENT_BYTES), where=str(config_path))
    if _MODELOPT_FILE in names and not any("quantization" in field for field in (*config, *text_config(config))):
        raise UnsupportedModel(
            f"The quantisation of {where} is not described in its config.json.",
            why=f"It is described in {_MODELOPT_FILE}, which mlx-lm does not read.",
            hint="Convert it once, then split the result: mlx_lm.convert --hf-path MODEL --mlx-path FOLDER",
        )
    index = folder / INDEX_FILE
    weight_map = read_index(index, _read_bounded(index, MAX_INDEX_BYTES)) if index.is_file() else None
    files = {name: read_header(name) for name in choose_files(where, names)}
    tensors = merge_tensors(where, files)
    notes = check_complete(where, weight_map, files, tensors)
    return Checkpoint(
        folder=folder,
        where=where,
        config=config,
        files=files,
        tensors=tensors,
        open_file=open_file,
        local_file=local_file,
        notes=notes,
        own_code=(
            *(f"{field} in {CONFIG_FILE}" for field in _CODE_FIELDS if field in config),
            *sorted(name for name in names if name.endswith(".py") and "/" not in name),
        ),
    )


def verify_weight_file(path: Path, file: WeightFile, catalogue: Mapping[str, TensorSpec]) -> None:
    """Check a weight file against the stage that names it; no byte may reach MLX before this returns.

    Args:
        path: The file.
        file: Its size, sha256 and tensors according to the stage.
        catalogue: Dtype and shape of every tensor of the model.

    Raises:
        WeightFileError: The file is missing or malformed, or its tensors, dtypes, shapes or their order differ.
        DigestMismatch: Its bytes differ from the published ones.
    """
    check_weight_header(path, file, catalogue)
    if (digest := _sha256(path)) != file.sha256:
        raise DigestMismatch(
            f"{path} is not the weight file that was published.",
            why=f"Its sha256 is {digest[:16]}..., but the stage says {file.sha256[:16]}....",
            hint="Delete it and download it again from its publisher.",
        )


def check_weight_header(path: Path, file: WeightFile, catalogue: Mapping[str, TensorSpec]) -> None:
    """Check a weight file without reading weights: size, tensors, dtypes, shapes.

    Raises:
        WeightFileError: As `verify_weight_file`.
    """
    header = read_header(path)
    if header.size_bytes != file.size_bytes:
        raise _not_promised(path, f"It has {header.size_bytes} bytes, but the stage says {file.size_bytes}.")
    actual, promised = list(header.tensors), list(file.tensors)
    if actual != promised:
        missing, extra = set(promised) - set(actual), set(actual) - set(promised)
        parts = [f"{kind}: {listed(names)}" for kind, names in (("missing", missing), ("extra", extra)) if names]
        raise _not_promised(path, f"Its tensors differ from the stage's ({'; '.join(parts) or 'their order'}).")
    wrong = [
        f"{name} is {_shown(tensor.spec)}, but the catalogue says {_shown(catalogue.get(name))}"
        for name, tensor in header.tensors.items()
        if tensor.spec != catalogue.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - _NAMES_SHOWN} more" if len(wrong) > _NAMES_SHOWN else ""
        raise _not_promised(path, f"{'; '.join(wrong[:_NAMES_SHOWN])}{more}.")


def check_unchanged(source: ByteSource, header: Header) -> None:
    """Check that a file has not changed since its header was read.

    Raises:
        WeightFileError: The file changed.
    """
    if (source.size_bytes, source.version) != (header.size_bytes, header.version):
        raise WeightFileError(
            f"{source.name} changed since its header was read.",
            why=f"It had {header.size_bytes} bytes then, and has {source.size_bytes} now.",
            hint="Wait until no process writes to the model, then start again.",
        )


def _unchanged(path: Path, header: Header) -> Path:
    with FileSource(path) as source:
        check_unchanged(source, header)
    return path


def _check_is_model(where: str, names: Collection[str]) -> None:
    for marker, noun, verb in ((STAGE_FILE, "shard", "serve"), (MANIFEST_FILE, "pipeline", "generate --manifest")):
        if marker in names:
            raise UsageError(
                f"{where} is a {noun}, not a model.",
                why=f"It contains {marker}.",
                hint=f"Give the model it was made from, or use it: shardhub {verb} {where}",
            )
    if CONFIG_FILE not in names:
        raise UsageError(
            f"{where} is not a model.",
            why=f"It does not contain {CONFIG_FILE}.",
            hint="Give a folder or repo that holds config.json, the tokenizer and *.safetensors.",
        )


def _read_bounded(path: Path, limit_bytes: int) -> bytes:
    try:
        data = read_file(path, limit_bytes + 1)
    except OSError as error:
        raise FormatError(f"{path} cannot be read.", why=f"{error.strerror}.") from error
    if len(data) > limit_bytes:
        raise FormatError(f"{path} is larger than {limit_bytes} bytes.", hint="No model needs a file of this size.")
    return data


def _sha256(path: Path) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_READ_BYTES))
    with opened(path) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _shown(spec: TensorSpec | None) -> str:
    return "absent" if spec is None else f"{spec.dtype} {list(spec.shape)}"


def _not_promised(path: Path, why: str) -> WeightFileError:
    return WeightFileError(
        f"{path} is not the weight file the stage names.",
        why=why,
        hint="Delete it and download it again from its publisher.",
    )
