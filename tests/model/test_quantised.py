"""A checkpoint quantised while it is read holds the tensors that mlx_lm.convert would write."""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.convert import convert

from shardhub.checkpoint.checkpoint import Checkpoint, open_checkpoint
from shardhub.checkpoint.header import ByteSource
from shardhub.checkpoint.quantisation import Quantisation
from shardhub.errors import UnsupportedModel, WeightFileError
from shardhub.model.arrays import to_raw
from shardhub.model.dissection import Dissection
from shardhub.model.quantised import quantise, read_arrays
from tests import originals, tiny
from tests.selection import variants

# What shardhub is asked for, and what mlx_lm.convert is.
CASES: dict[str, tuple[Quantisation, dict[str, Any]]] = {
    "affine 4": (Quantisation(bits=4, group_size=32), {"q_bits": 4, "q_group_size": 32}),
    "affine 8": (Quantisation(bits=8), {"q_bits": 8}),
    "mxfp4": (Quantisation(mode="mxfp4"), {"q_mode": "mxfp4"}),
    "nvfp4": (Quantisation(mode="nvfp4"), {"q_mode": "nvfp4"}),
    "mxfp8": (Quantisation(mode="mxfp8"), {"q_mode": "mxfp8"}),
    "mixed": (
        Quantisation(recipe="mixed_3_6", group_size=64),
        {"quant_predicate": "mixed_3_6", "q_group_size": 64},
    ),
}
# Experts to be stacked, fp8 with scales, modules to which upstream's own predicate gives other bits, a nested
# configuration, weights that are multiplied.
MODELS = ("mixtral", "deepseek_v3_fp8", "qwen2_moe", "qwen3_5", "gemma3", "falcon_h1")
NUM_LAYERS = originals.NUM_LAYERS


def converted(model: Path, out: Path, **how: Any) -> Checkpoint:
    """What mlx_lm.convert writes of a model folder."""
    with contextlib.redirect_stdout(io.StringIO()):
        convert(str(model), str(out), quantize=True, **how)
    return open_checkpoint(out)


def arrays_of(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The bytes of all tensors of a folder, by name."""
    return {
        name: bytes(to_raw(array).data)
        for file in checkpoint.files
        for name, array in mx.load(str(checkpoint.folder / file)).items()
    }


def quantised_bytes(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The bytes of all tensors of a quantised checkpoint, by name."""
    return {name: bytes(to_raw(array).data) for name, array in read_arrays(checkpoint, checkpoint.tensors).items()}


class _Watched:
    """A file that notes the ranges that are read of it."""

    def __init__(self, file: str, source: ByteSource, reads: list[tuple[str, int, int]]) -> None:
        self.name, self.size_bytes, self.version = source.name, source.size_bytes, source.version
        self.read_ahead, self.close = source.read_ahead, source.close
        self._file, self._source, self._reads = file, source, reads

    def read_into(self, start: int, buffer: memoryview) -> None:
        self._reads.append((self._file, start, start + len(buffer)))
        self._source.read_into(start, buffer)


@pytest.mark.parametrize(
    ("name", "case"),
    variants(
        [
            *(("llama", case) for case in CASES),
            *(("mixtral", "affine 4"), ("deepseek_v3_fp8", "mxfp4"), ("qwen2_moe", "mixed")),
            *((name, case) for name in MODELS for case in CASES),
        ],
        num_default=len(CASES) + 3,
    ),
)
def test_tensors_are_those_of_upstreams_converter(name: str, case: str, tmp_path: Path) -> None:
    """Names, dtypes, shapes and bytes of every tensor, and the record in config.json."""
    model = originals.write(name, tmp_path / "model", dtype=mx.bfloat16)
    quantisation, how = CASES[case]
    expected = converted(model, tmp_path / "converted", **how)
    made = quantise(open_checkpoint(model), quantisation)
    assert {key: tensor.spec for key, tensor in made.tensors.items()} == {
        key: tensor.spec for key, tensor in expected.tensors.items()
    }
    assert quantised_bytes(made) == arrays_of(expected)
    for field in ("quantization", "quantization_config"):
        assert made.config[field] == expected.config[field]
        assert json.loads(made.small_file("config.json"))[field] == expected.config[field]


def test_floats_are_cast_as_upstream_does(tmp_path: Path) -> None:
    """To the dtype in config.json: a float32 checkpoint of a bfloat16 model gets its scales and norms in bfloat16."""
    config = {**tiny.config("qwen3"), "torch_dtype": "bfloat16"}
    model = tiny.save(tiny.build(config), config, tmp_path / "model", num_files=2)
    tiny.save_tokenizer(model)
    made = quantise(open_checkpoint(model), Quantisation(bits=4))
    assert made.tensors["model.norm.weight"].spec.dtype == "BF16"
    assert quantised_bytes(made) == arrays_of(converted(model, tmp_path / "converted", q_bits=4))


def test_tensors_are_read_in_any_order_and_pieces(tmp_path: Path) -> None:
    """A piece in the middle, one over the border of two tensors, and a tensor read before."""
    made = quantise(open_checkpoint(originals.write("mixtral", tmp_path / "model")), Quantisation(group_size=32))
    file = made.tensors["model.layers.1.self_attn.q_proj.weight"].file
    source = made.open_file(file)
    whole = bytearray(source.size_bytes)
    source.read_into(0, memoryview(whole))
    first, second, *_ = made.files[file].tensors.values()
    for start, stop in ((second.start - 3, second.start + 5), (first.start + 4, first.stop - 4), (0, 8)):
        piece = bytearray(stop - start)
        source.read_into(start, memoryview(piece))
        assert piece == whole[start:stop]
    source.close()


def test_source_bytes_are_read_once(tmp_path: Path) -> None:
    """Each tensor of the source that the model has is read one time, in the order of its file, and nothing else."""
    checkpoint = open_checkpoint(originals.write("mixtral", tmp_path / "model"))
    reads: list[tuple[str, int, int]] = []
    watched = replace(checkpoint, open_file=lambda file: _Watched(file, checkpoint.open_file(file), reads))
    made = quantise(watched, Quantisation(group_size=32))
    assert reads == []
    quantised_bytes(made)
    assert sorted(reads) == sorted((tensor.file, tensor.start, tensor.stop) for tensor in checkpoint.tensors.values())


def test_kept_tensors_are_computed_once(tmp_path: Path) -> None:
    """What the comparison with the whole model has computed is written without reading the source again."""
    checkpoint = open_checkpoint(originals.write("mixtral", tmp_path / "model"))
    reads: list[tuple[str, int, int]] = []
    watched = replace(checkpoint, open_file=lambda file: _Watched(file, checkpoint.open_file(file), reads))
    made = quantise(watched, Quantisation(group_size=32))
    expected = quantised_bytes(quantise(checkpoint, Quantisation(group_size=32)))
    held = mx.get_active_memory()
    read_arrays(made, made.tensors, keep=True)
    assert len(reads) == len(checkpoint.tensors)
    for name, tensor in made.tensors.items():
        data = bytearray(tensor.spec.size_bytes)
        with contextlib.closing(made.open_file(tensor.file)) as source:
            source.read_into(tensor.start, memoryview(data))
        assert bytes(data) == expected[name]
    assert len(reads) == len(checkpoint.tensors)
    assert mx.get_active_memory() <= held  # each is forgotten once it is read


def test_one_layer_is_in_memory(tmp_path: Path) -> None:
    """At any time memory holds a layer's floats and its result, not the model's."""
    config = {**tiny.config("llama"), "hidden_size": 512, "intermediate_size": 2048, "vocab_size": 64}
    made = quantise(open_checkpoint(tiny.save(tiny.build(config), config, tmp_path / "model")), Quantisation())
    layer_bytes = 4 * (3 * 512 * 2048 + 2 * 512 * 128 + 2 * 512 * 64)
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    for name in made.files:
        source = made.open_file(name)
        source.read_into(0, memoryview(bytearray(source.size_bytes)))
        source.close()
    assert mx.get_peak_memory() - held < 1.5 * layer_bytes


def test_changed_source_is_refused(tmp_path: Path) -> None:
    """A source file replaced after its header was read gives no tensor."""
    model = originals.write("llama", tmp_path / "model")
    made = quantise(open_checkpoint(model), Quantisation(group_size=32))
    for path in model.glob("*.safetensors"):
        os.utime(path, ns=(0, 0))
    with pytest.raises(WeightFileError, match="changed since its header was read"):
        quantised_bytes(made)


def test_files_are_known_by_source_and_quantisation(tmp_path: Path) -> None:
    """The version of a file is the same in every run, and another for another quantisation."""
    model = originals.write("llama", tmp_path / "model")

    def versions(quantisation: Quantisation) -> set[str]:
        return {header.version for header in quantise(open_checkpoint(model), quantisation).files.values()}

    assert versions(Quantisation(bits=4)) == versions(Quantisation())
    assert versions(Quantisation(bits=4)) != versions(Quantisation(bits=8))


def test_proof_is_of_the_quantised_configuration(tmp_path: Path) -> None:
    """Its stages have the graph hashes of a split of what mlx_lm.convert writes."""
    model = originals.write("qwen2_moe", tmp_path / "model", dtype=mx.bfloat16)
    quantisation, how = CASES["affine 4"]
    hashes = [
        [stage.graph_hash for stage in Dissection(checkpoint.config, specs).stages([(0, 2), (2, NUM_LAYERS)])]
        for checkpoint in (quantise(open_checkpoint(model), quantisation), converted(model, tmp_path / "c", **how))
        for specs in [{name: tensor.spec for name, tensor in checkpoint.tensors.items()}]
    ]
    assert hashes[0] == hashes[1]


def test_quantised_source_is_refused(tmp_path: Path) -> None:
    """A source that is quantised already, by MLX or by its publisher."""
    config = tiny.config("llama")
    model = tiny.build(config)
    folder = tiny.save(model, tiny.quantize(model, config), tmp_path / "mlx")
    for made in (folder, originals.write("gpt_oss", tmp_path / "mxfp4")):
        with pytest.raises(UnsupportedModel, match="is quantised already"):
            quantise(open_checkpoint(made), Quantisation())


def test_group_size_that_divides_nothing_is_refused(tmp_path: Path) -> None:
    """One that divides some rows is noted, and the others stay floats as upstream leaves them."""
    config = {**tiny.config("llama"), "head_dim": 24}  # rows of 64, of 96 in o_proj and of 128 in down_proj
    checkpoint = open_checkpoint(tiny.save(tiny.build(config), config, tmp_path / "model"))
    made = quantise(checkpoint, Quantisation(group_size=64))
    assert made.tensors["model.layers.0.self_attn.o_proj.weight"].spec.dtype == "F32"
    assert "groups of 64 do not divide the rows of model.layers.0.self_attn.o_proj" in made.notes[0]
    narrow = {**config, "intermediate_size": 96}
    other = open_checkpoint(tiny.save(tiny.build(narrow), narrow, tmp_path / "narrow"))
    with pytest.raises(UnsupportedModel, match="groups of 128"):
        quantise(other, Quantisation(group_size=128))


def test_recipe_that_does_not_suit_the_model_is_refused(tmp_path: Path) -> None:
    """mlx-lm's recipes need modules named down_proj."""
    with pytest.raises(UnsupportedModel, match="recipe mixed_4_6"):
        quantise(open_checkpoint(originals.write("mamba", tmp_path / "m")), Quantisation(recipe="mixed_4_6"))
