"""Writing a shard's or a pipeline's folder: hidden while it is made, put in place by one rename when it is complete."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.errors import AccessError, DiskFull, FormatError, UsageError
from shardhub.manifest import Manifest, Stage, decode_identified, sha256_hex
from shardhub.naming import CONFIG_FILE, MANIFEST_FILE, STAGE_FILE
from shardhub.regular_files import check_regular, read_file
from shardhub.splitting.weight_copy import FULL
from shardhub.whole_files import sync_folder, write_synced, write_whole

# Files that a pipeline carries so that a client needs no weights: configuration, tokenizer, template.
PIPELINE_FILES = (
    CONFIG_FILE,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tiktoken.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
_PIPELINE_SUFFIXES = (".tiktoken",)
# Where transformers keeps additional chat templates; a pipeline has them in tokenizer_config.json.
TEMPLATES_FOLDER = "additional_chat_templates"
_TEMPLATE_FILE = re.compile(rf"{TEMPLATES_FOLDER}/[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}\.jinja")
# Longest name on Linux's and macOS's file systems.
_MAX_NAME_BYTES = 255
# The largest tokenizer measured has 35 MB; a larger one than this is an attack.
MAX_PIPELINE_FILE_BYTES = 64 << 20


def partial_folder(folder: Path) -> Path:
    """Path at which a folder is made before it gets its name."""
    return folder.with_name(f".{folder.name}.partial")


def existing_stage(folder: Path) -> Stage | None:
    """Read stage.json of a shard's folder that is in place; None if there is no folder.

    Raises:
        UsageError: Something else has the folder's name, or weight files are missing.
    """
    if not folder.exists():
        return None
    path = folder / STAGE_FILE
    try:
        stage = decode_identified(Stage, read_file(path), where=str(path))
    except (OSError, FormatError) as error:
        raise in_the_way(folder, "it is not a shard") from error
    for file in stage.weight_files:
        weights = folder / file.name
        size = weights.stat().st_size if weights.is_file() else None
        if size != file.size_bytes:
            fault = "is missing" if size is None else f"has {size} bytes"
            raise in_the_way(folder, f"it is damaged: {file.name} {fault}, but stage.json says {file.size_bytes} bytes")
    return stage


def check_same(folder: Path, existing: Stage, expected: Stage) -> None:
    """Raise `UsageError` unless the shard in place is the expected one; digests of weight files count if known."""
    known = {file.name: file.sha256 for file in expected.weight_files if file.sha256 != UNKNOWN}
    files = tuple(
        file if file.name in known else file.model_copy(update={"sha256": UNKNOWN}) for file in existing.weight_files
    )
    if existing.model_copy(update={"weight_files": files}) == expected:
        return
    why = f"it holds layers [{existing.start}, {existing.stop}) of {existing.num_layers}, not those of this shard"
    if (existing.start, existing.stop, existing.num_layers) == (expected.start, expected.stop, expected.num_layers):
        why = "it holds the same layers of another model or revision"
    raise in_the_way(folder, why)


def pipeline_in_place(folder: Path, expected: Manifest, *, compare_digests: bool = True) -> bool:
    """Whether the pipeline's folder is in place.

    Raises:
        UsageError: Another pipeline, or something else, has the folder's name.
    """
    if not folder.exists():
        return False
    path = folder / MANIFEST_FILE
    try:
        existing = decode_identified(Manifest, read_file(path), where=str(path))
    except (OSError, FormatError) as error:
        raise in_the_way(folder, "it is not a pipeline") from error
    cuts, expected_cuts = ([stage.start for stage in manifest.stages[1:]] for manifest in (existing, expected))
    if cuts != expected_cuts:
        raise in_the_way(folder, f"it is a pipeline cut at {cuts[:20]}, and this one is cut at {expected_cuts[:20]}")
    if existing.files != expected.files:
        changed = sorted({name for name, _ in existing.files.items() ^ expected.files.items()})
        raise in_the_way(folder, f"it was made with other files: {', '.join(changed)[:200]}")
    if not compare_digests:
        stages = zip(existing.stages, expected.stages, strict=True)
        blind = tuple(present.model_copy(update={"digest": own.digest}) for present, own in stages)
        existing = existing.model_copy(update={"stages": blind})
    # What it says about its numbers was measured when it was made, and stays.
    if existing.model_copy(update={"inexact": expected.inexact}) != expected:
        raise in_the_way(folder, "it is a pipeline of another model or revision")
    return True


# Placeholder for a sha256 that is unknown until the file is read.
UNKNOWN = "0" * 64


def is_pipeline_file(name: str) -> bool:
    """Whether a pipeline carries a file of this name if its source has it."""
    return name in PIPELINE_FILES or (name.endswith(_PIPELINE_SUFFIXES) and not name.startswith("."))


def pipeline_files(checkpoint: Checkpoint) -> dict[str, str]:
    """Compute the sha256 of the source's files that a pipeline carries, by name.

    Raises:
        FormatError: A file is too large.
    """
    return {name: sha256_hex(checkpoint.small_file(name)) for name in pipeline_file_names(checkpoint)}


def pipeline_file_names(checkpoint: Checkpoint) -> list[str]:
    """Names of the files that a pipeline of a model carries: known ones in their order, then the others sorted.

    Raises:
        FormatError: A file is too large, or is not a regular file.
    """
    source = checkpoint.folder
    there = {path.name for path in source.iterdir() if is_pipeline_file(path.name) and path.exists()}
    for path in sorted(source / name for name in there - checkpoint.made.keys()):
        try:
            size = path.stat().st_size
            check_regular(path)
        except OSError as error:
            raise FormatError(f"{path} cannot be read.", why=f"{error.strerror}.") from error
        if size > MAX_PIPELINE_FILE_BYTES:
            raise FormatError(
                f"{path} is too large.",
                why=f"It has {size} bytes, and the limit is {MAX_PIPELINE_FILE_BYTES}.",
                hint="Remove it from the model folder if the model does not need it.",
            )
    there = (there | checkpoint.made.keys()) - checkpoint.left_out
    return [name for name in PIPELINE_FILES if name in there] + sorted(there.difference(PIPELINE_FILES))


def is_template_file(name: str) -> bool:
    """Whether a file is an additional chat template where transformers keeps those."""
    return _TEMPLATE_FILE.fullmatch(name) is not None


def template_file_names(checkpoint: Checkpoint) -> list[str]:
    """Names of a model's additional chat templates."""
    paths = sorted((checkpoint.folder / TEMPLATES_FOLDER).glob("*.jinja"))
    names = [f"{TEMPLATES_FOLDER}/{path.name}" for path in paths]
    return [name for name in names if is_template_file(name)]


def begin_partial(folder: Path, keep: Collection[str]) -> Path:
    """Prepare the hidden folder in which `folder` is made; anything in it that is not in `keep` is removed."""
    partial = partial_folder(folder)
    partial.mkdir(exist_ok=True)
    for path in list(partial.iterdir()):
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return partial


def write_files(partial: Path, files: Mapping[str, bytes]) -> None:
    """Write small files and sync them; a name may contain one folder."""
    inner = {(partial / name).parent for name in files} - {partial}
    for folder in inner:
        folder.mkdir(exist_ok=True)
    for name, data in files.items():
        write_synced(partial / name, data, replace=True)
    for folder in inner:
        sync_folder(folder)


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace small files of a folder that is in place, each atomically."""
    for name, data in files.items():
        path = folder / name
        write_whole(path, data, temporary=path.with_name(f".{path.name}.writing"))


def put_in_place(folder: Path) -> None:
    """Give a complete folder its name: it appears at once or not at all."""
    partial = partial_folder(folder)
    sync_folder(partial)
    os.rename(partial, folder)
    sync_folder(folder.parent)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Map errors of the file system: no room to `DiskFull`, no permission to `AccessError`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(
                f"The disk is full: {error.filename or folder} could not be written.",
                why=f"{error.strerror}.",
                hint="Free some space and run the same command again: it continues where it stopped.",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise AccessError(
                f"{error.filename or folder} cannot be written.",
                why=f"{error.strerror}.",
                hint="Give a folder that you can write to.",
            ) from error
        if error.errno == errno.ENAMETOOLONG:
            name = os.fsdecode(error.filename or "")
            raise UsageError(
                f"{folder} cannot be written: the file system does not allow so long a name.",
                why=f"A name can have {_MAX_NAME_BYTES} bytes, and {Path(name).name[:120]!r} is longer.",
                hint="Give a shorter `name`, or another folder.",
            ) from error
        if isinstance(error, NotADirectoryError | FileExistsError):
            raise UsageError(f"{folder} is not a folder.", why=f"{error.strerror}: {error.filename}.") from error
        raise


def in_the_way(folder: Path, why: str) -> UsageError:
    """The error for an existing folder with the name of one to be made."""
    return UsageError(
        f"{folder} already exists with other contents, and is not overwritten.",
        why=f"{why[:1].upper()}{why[1:]}.",
        hint="Give another name (`name`) or another folder, or delete it first.",
    )
