"""Splitting a model that is quantised while it is read: a run that was stopped goes on, whatever it was asked for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from shardhub.checkpoint.checkpoint import open_checkpoint
from shardhub.checkpoint.quantisation import Quantisation
from shardhub.errors import NonFiniteWeights
from shardhub.manifest import Source
from shardhub.model.dissection import Dissection
from shardhub.model.quantised import quantise, read_arrays
from shardhub.splitting.split import SplitProgress, SplitResult, preview, split
from tests import originals, tiny

QUANTISATION = Quantisation(bits=8, group_size=32)
SOURCE = Source(repo=None, commit=None, quantized=QUANTISATION.record)


@pytest.fixture(scope="module")
def dissected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """A quantised checkpoint, its contents, and those of three stages."""
    folder = originals.write("llama", tmp_path_factory.mktemp("quantised") / "model", dtype=mx.bfloat16)
    checkpoint = quantise(open_checkpoint(folder), QUANTISATION)
    dissection = Dissection(checkpoint.config, {name: tensor.spec for name, tensor in checkpoint.tensors.items()})
    stages = dissection.stages(list(pairwise([0, 2, 4, originals.NUM_LAYERS])))
    return checkpoint, dissection.model(), stages


def _split(dissected: tuple[Any, ...], out: Path, **more: Any) -> SplitResult:
    return split(*dissected, out, name="m", source=SOURCE, **more)


def _tree(out: Path) -> dict[str, bytes]:
    """Every file in sight below a folder."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.relative_to(out).parts[0].startswith(".")
    }


def test_stopped_run_goes_on(dissected: tuple[Any, ...], tmp_path: Path) -> None:
    """Finished files are kept, and the next run ends with the bytes of one that was not stopped."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    _split(dissected, whole)

    def stop(progress: SplitProgress) -> None:
        if progress.done_bytes > 0.6 * progress.total_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _split(dissected, out, progress=stop)
    assert not (out / "m-pipeline").exists()
    fresh, left = (preview(*dissected, folder, name="m", source=SOURCE) for folder in (tmp_path / "new", out))
    assert 0 < left.read_bytes < 0.6 * fresh.read_bytes
    _split(dissected, out)
    assert _tree(out) == _tree(whole)


def test_shards_one_by_one_make_the_same_pipeline(dissected: tuple[Any, ...], tmp_path: Path) -> None:
    """`only` K, in any order, computes what the whole run computes."""
    _split(dissected, tmp_path / "whole")
    for index in (2, 0, 1):
        result = _split(dissected, tmp_path / "single", only=index)
        assert (result.pipeline is None) == (index != 1)
    assert _tree(tmp_path / "single") == _tree(tmp_path / "whole")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_floats_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    """With `check_weights` those of the source are checked, whose quantised form may look sound."""
    config = tiny.config("llama")
    model = tiny.build(config)
    model.layers[1].mlp.up_proj.weight[3, 5] = value
    quantisation = Quantisation(mode="mxfp4")
    checkpoint = quantise(
        open_checkpoint(tiny.save(model, config, tmp_path / "model")), quantisation, check_weights=True
    )
    with pytest.raises(NonFiniteWeights, match=r"layers\.1\.mlp\.up_proj\.weight contains(.|\n)*\[3, 5\]"):
        read_arrays(checkpoint, checkpoint.tensors)
