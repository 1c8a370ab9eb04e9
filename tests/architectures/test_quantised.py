"""Every architecture's tiny model, quantised while it is read, has the tensors that mlx_lm's own code makes of it."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, quantize_model

from shardhub.checkpoint.checkpoint import open_checkpoint
from shardhub.checkpoint.quantisation import Quantisation
from shardhub.errors import UnsupportedModel
from shardhub.model.arrays import to_raw
from shardhub.model.quantised import quantise, read_arrays
from tests import tiny
from tests.architectures.matrix import CONFIGS
from tests.architectures.standins import standing_in

pytestmark = pytest.mark.architectures

QUANTISATION = Quantisation(bits=4, group_size=32)
# Why the others are refused.
REFUSED = {
    "afm7": "cannot be quantised with the mode affine",  # mlx-lm's own module does not take a mode
    "apertus": "cannot be quantised while it is split",  # mlx-lm computes some of its tensors at each load
    "prism_hadamard_qwen35": "is quantised already",
}


@pytest.mark.parametrize("module", sorted(CONFIGS))
def test_tensors_are_those_that_upstream_makes(module: str, tmp_path: Path) -> None:
    """Names and bytes of all tensors, and the record in the config; or a refusal that says why."""
    with standing_in(module):
        config = dict(CONFIGS[module])
        folder = tiny.save(tiny.build(config, dtype=mx.bfloat16), config, tmp_path / "model")
        checkpoint = open_checkpoint(folder)
        if module in REFUSED:
            with pytest.raises(UnsupportedModel, match=REFUSED[module]):
                quantise(checkpoint, QUANTISATION)
            return
        with redirect_stdout(StringIO()):
            model, expected = quantize_model(*load_model(folder, lazy=True), 32, 4)
        made = quantise(checkpoint, QUANTISATION)
        arrays = read_arrays(made, made.tensors)
    assert {name: bytes(to_raw(array).data) for name, array in arrays.items()} == {
        name: bytes(to_raw(array).data) for name, array in tree_flatten(model.parameters())
    }
    assert made.config["quantization"] == expected["quantization"]
