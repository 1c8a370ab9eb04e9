"""Verifying a pipeline by its source: compares tensors of the shards with the model they were made from."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.checkpoint.difference import Difference, find_difference
from shardhub.checkpoint.header import ByteSource, FileSource, StoredTensor, read_header
from shardhub.checkpoint.last_opened import LastOpened
from shardhub.checkpoint.quantisation import Quantisation
from shardhub.errors import UsageError
from shardhub.parameters import MAX_SEED
from shardhub.setting_checks import check_settings
from shardhub.shard import Shard
from shardhub.splitting.contents import ModelContents
from shardhub.usecases.pipeline_source import source_endpoint
from shardhub.usecases.places import open_model
from shardhub.usecases.verify_target import Target, open_target
from shardhub.usecases.watcher import SILENT, Progress, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """How tensors are compared with the source's.

    Attributes:
        source_folder: Folder of the model the pipeline was made from; None reads ranges of its repo.
        source_endpoint: URL of the Hub that repo is on; None takes the one that the manifest names, or HF_ENDPOINT's.
        num_tensors: Number of tensors, drawn at random; None compares all.
        seed: Seed of the draw; None draws a random one.
        fetch: Fetch the shards that are not here.
        cache_dir: The cache's folder; None takes the user's.
    """

    source_folder: str | Path | None = None
    source_endpoint: str | None = None
    num_tensors: int | None = None
    seed: int | None = None
    fetch: bool = False
    cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        check_settings(self, num_tensors=(1, None), seed=(0, None))


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceVerification:
    """The result of comparing tensors of a pipeline's shards with the source's.

    Attributes:
        source: Where the model is.
        num_compared, num_tensors: Tensors compared, and all tensors here.
        seed: Seed of the draw; None if all were compared.
        absent: Stages that are not here, and were not compared.
        different: Tensors that differ from the source's.
    """

    pipeline_id: str
    source: str
    num_compared: int
    num_tensors: int
    compared_bytes: int
    seed: int | None
    absent: tuple[int, ...]
    different: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        """Whether all compared tensors equal the source's, byte for byte."""
        return not self.different


@dataclass(frozen=True, slots=True, kw_only=True)
class _Own:
    """A tensor in a shard."""

    name: str
    path: Path
    stored: StoredTensor

    @property
    def size_bytes(self) -> int:
        return self.stored.stop - self.stored.start


def verify_source(
    pipeline: str | Path, settings: SourceSettings = SourceSettings(), watcher: Watcher = SILENT
) -> SourceVerification:
    """Compare tensors with the source byte by byte: all of them, or some drawn at random.

    Raises:
        UsageError: No shard is here, or the source's location is unknown.
    """
    target = open_target(pipeline, settings.cache_dir, watcher)
    checkpoint = _open_source(target, settings, watcher)
    shards = target.shards(fetch=settings.fetch)
    if not shards:
        raise UsageError(
            f"This machine has no shard of {pipeline}.", hint="Add `fetch`, or fetch shards with `shardhub pull SHARD`."
        )
    absent = [index for index in range(len(target.pipeline.manifest.stages)) if index not in shards]
    if absent:
        watcher.note(f"not on this machine and not compared: stage {', '.join(map(str, absent))}")
    own = _tensors(shards)
    from shardhub.model.dissection import Dissection

    contents = Dissection(checkpoint.config, {name: tensor.spec for name, tensor in checkpoint.tensors.items()}).model()
    computed = {} if contents.computed is None else contents.computed.specs
    # Computing one may need every weight file, which ranges of a repo do not provide.
    is_whole = settings.source_folder is not None
    chosen = own if is_whole else [tensor for tensor in own if tensor.name not in computed]
    if len(chosen) < len(own):
        watcher.note(
            f"{len(own) - len(chosen)} tensors were computed from the source's instead of copied, and are not "
            "compared: give the model's files with `source_folder` DIR to compute and compare them"
        )
    seed = None
    if settings.num_tensors is not None and settings.num_tensors < len(chosen):
        seed = secrets.randbelow(MAX_SEED) if settings.seed is None else settings.seed
        picked = set(random.Random(seed).sample(range(len(chosen)), settings.num_tensors))  # noqa: S311 - not a secret
        chosen = [tensor for index, tensor in enumerate(chosen) if index in picked]
        watcher.note(f"drawn with `seed` {seed}")
    different = _compare(chosen, checkpoint, contents, watcher)
    return SourceVerification(
        pipeline_id=target.pipeline.manifest.pipeline_id,
        source=checkpoint.where,
        num_compared=len(chosen),
        num_tensors=len(own),
        compared_bytes=sum(tensor.size_bytes for tensor in chosen),
        seed=seed,
        absent=tuple(absent),
        different=tuple(different),
    )


def _open_source(target: Target, settings: SourceSettings, watcher: Watcher) -> Checkpoint:
    source, endpoint = target.pipeline.manifest.source, settings.source_endpoint
    if settings.source_folder is not None:
        model, endpoint = str(Path(settings.source_folder).absolute()), None
    elif source.repo is not None:
        model = f"{source.repo}@{source.commit}"
        endpoint = source_endpoint(target.pipeline.manifest, endpoint)
    else:
        raise UsageError(
            f"{target.text} was made from a folder.",
            why="Its manifest does not name a repo of the model.",
            hint="Give that folder: `source_folder` DIR",
        )
    quantisation = None if source.quantized is None else Quantisation.of(source.quantized)
    return open_model(
        model,
        source_endpoint=endpoint,
        ignore_code=True,
        ignore_fields=None,
        quantisation=quantisation,
        watcher=watcher,
    ).checkpoint


def _tensors(shards: dict[int, Shard]) -> list[_Own]:
    """List all tensors of these shards, in the order of their files."""
    paths = [shard.folder / file.name for _, shard in sorted(shards.items()) for file in shard.stage.weight_files]
    return [
        _Own(name=name, path=path, stored=stored)
        for path in paths
        for name, stored in read_header(path).tensors.items()
    ]


def _compare(chosen: list[_Own], checkpoint: Checkpoint, contents: ModelContents, watcher: Watcher) -> list[Difference]:
    different: list[Difference] = []
    made = _computed(chosen, checkpoint, contents)
    total, done = sum(tensor.size_bytes for tensor in chosen), 0
    here, there = LastOpened(FileSource), LastOpened(checkpoint.open_file)
    with closing(here), closing(there):
        for tensor in chosen:
            if (stored := checkpoint.tensors.get(contents.stored_names.get(tensor.name, ""))) is not None:
                other: tuple[ByteSource, StoredTensor] = (there.file(stored.file), stored)
            elif contents.computed is not None and tensor.name in contents.computed.specs:
                other = next(made)
            else:
                different.append(Difference(name=tensor.name, why="the source does not have this tensor"))
                continue
            own = (here.file(tensor.path), tensor.stored)
            if (difference := find_difference(tensor.name, own, other)) is not None:
                different.append(difference)
            done += tensor.size_bytes
            watcher.progress(Progress(activity="comparing", item=tensor.name, done=done, total=total))
    return different


def _computed(
    chosen: list[_Own], checkpoint: Checkpoint, contents: ModelContents
) -> Iterator[tuple[ByteSource, StoredTensor]]:
    """Yield the computed ones of these tensors as byte sources; each is valid until the next."""
    if contents.computed is None:
        return
    specs = contents.computed.specs
    names = [tensor.name for tensor in chosen if tensor.name in specs]
    for name, data in zip(names, contents.computed.read(checkpoint, names), strict=True):
        yield _Memory(name, data), StoredTensor(spec=specs[name], file=name, start=0, stop=len(data))


class _Memory:
    """Bytes in memory, as a `ByteSource`."""

    version = ""

    def __init__(self, name: str, data: memoryview) -> None:
        self.name = name
        self.size_bytes = len(data)
        self._data = data

    def read_ahead(self, start: int, stop: int) -> None:
        """Do nothing, as all bytes are in memory."""

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Copy the bytes from `start` on."""
        buffer[:] = self._data[start : start + len(buffer)]

    def close(self) -> None:
        """Do nothing: the bytes belong to the caller."""
