"""Cut model folders for tests, with the code that `shardhub split` runs."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from shardhub.checkpoint.checkpoint import open_checkpoint
from shardhub.manifest import Source
from shardhub.model.dissection import Dissection
from shardhub.naming import pipeline_name, shard_name
from shardhub.shard import Pipeline, Shard, read_pipeline, read_shard
from shardhub.splitting.split import split
from tests import known, tiny

NAME = "m"
# Folders of tiny models and their pipelines, by name, positions and changes; nobody alters them.
_made: dict[str, Path] = {}
# Dissections by config.json and headers, and the contents of stages by positions too. Weights change nothing in them.
_dissections: dict[str, Dissection] = {}
_contents: dict[tuple[str, tuple[int, ...]], tuple[Any, ...]] = {}
known.prepare()


def dissected(model: Path, positions: tuple[int, ...]) -> tuple[Any, ...]:
    """A model folder's checkpoint, and what a split before the given layers needs; proven once per run of the tests."""
    checkpoint = open_checkpoint(model)
    specs = {key: tensor.spec for key, tensor in checkpoint.tensors.items()}
    key = repr((checkpoint.config, specs))
    with known.remembering():
        if key not in _dissections:
            _dissections[key] = Dissection(checkpoint.config, specs)
        if (key, positions) not in _contents:
            dissection = _dissections[key]
            stages = dissection.stages(list(pairwise([0, *positions, dissection.anatomy.num_layers])))
            _contents[key, positions] = dissection.model(), stages
    return checkpoint, *_contents[key, positions]


def cut(model: Path, out: Path, positions: tuple[int, ...], *, name: str = NAME) -> Pipeline:
    """Cut a model folder before the given layers."""
    split(*dissected(model, positions), out, name=name, source=Source(repo=None, commit=None))
    return read_pipeline(out / pipeline_name(name))


def shard_folder(pipeline: Pipeline, index: int) -> Path:
    """The folder of a shard of a pipeline that `cut` made."""
    return pipeline.folder.parent / shard_name(pipeline.manifest.name, index)


def shards(pipeline: Pipeline, *indices: int) -> list[Shard]:
    """The shards of a pipeline that `cut` made."""
    return [read_shard(shard_folder(pipeline, index)) for index in indices]


def tiny_model(folder: Path, name: str = "llama", **changes) -> Path:
    """The folder of a tiny model."""
    config = {**tiny.config(name), **changes}
    return tiny.save(tiny.build(config), config, folder)


def tiny_pipeline(folder: Path, positions: tuple[int, ...], name: str = "llama", **changes) -> Pipeline:
    """A tiny model in `folder`/model and its pipeline in `folder`/out; cut once per process, then copied.

    What is proven before a cut takes most of the time of a test that only needs the shards.
    """
    key = json.dumps([name, positions, changes], sort_keys=True)
    if key not in _made:
        made = Path(tempfile.mkdtemp(prefix="shardhub-tiny-"))
        atexit.register(shutil.rmtree, made, ignore_errors=True)
        cut(tiny_model(made / "model", name, **changes), made / "out", positions)
        _made[key] = made
    shutil.copytree(_made[key], folder, dirs_exist_ok=True)
    return read_pipeline(folder / "out" / pipeline_name(NAME))
