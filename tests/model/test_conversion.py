"""Tensors that upstream's sanitize changes: copied, computed or refused, as decided from headers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from shardhub.checkpoint.checkpoint import Checkpoint, open_checkpoint
from shardhub.errors import UnsupportedModel, WeightFileError
from shardhub.model.build import spec_of
from shardhub.model.conversion import Conversion
from shardhub.model.dissection import Dissection
from shardhub.tensors import TensorSpec
from tests import originals, tiny
from tests.architectures.matrix import CONFIGS


def opened(name: str, folder: Path) -> tuple[Checkpoint, Conversion]:
    checkpoint = open_checkpoint(originals.write(name, folder))
    return checkpoint, Conversion(checkpoint.config, specs_of(checkpoint))


def specs_of(checkpoint: Checkpoint) -> dict[str, TensorSpec]:
    return {name: tensor.spec for name, tensor in checkpoint.tensors.items()}


def converted(config: dict[str, Any]) -> dict[str, TensorSpec]:
    """Headers of a tiny model as mlx_lm.convert would save it."""
    return {name: spec_of(array) for name, array in tree_flatten(tiny.build(config).parameters())}


def test_tensors_that_sanitize_drops_are_left_out() -> None:
    """Buffers of a checkpoint that mlx-lm does not load never reach a shard."""
    config = tiny.config("llama")
    stored = converted(config)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": TensorSpec(dtype="F32", shape=(8,))}
    conversion = Conversion(config, {**stored, **extra})
    assert conversion.copied == {name: name for name in stored}
    assert not conversion.computed


def test_tensor_changed_in_place_is_computed(tmp_path: Path) -> None:
    """falcon_h1 multiplies weights with `*=`, which makes another array in the same object: they are computed."""
    checkpoint, conversion = opened("falcon_h1", tmp_path / "m")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert conversion.tensors[name] == checkpoint.tensors[name].spec
    assert name in conversion.computed
    assert "model.layers.0.input_layernorm.weight" in conversion.copied


@pytest.mark.parametrize("name", [name for name, original in originals.ORIGINALS.items() if original.is_computed])
def test_computed_tensors_are_those_upstream_loads(name: str, tmp_path: Path) -> None:
    """Computed tensors have the right bytes, in any order and repeatedly; nothing is sanitised twice."""
    checkpoint, conversion = opened(name, tmp_path / "m")
    model, _ = load_model(tmp_path / "m")
    expected = dict(tree_flatten(model.parameters()))
    names = sorted(conversion.computed)
    for order in (names[::2], names[1::2], names[:3]):
        for key, data in zip(order, conversion.read(checkpoint, order), strict=True):
            array = expected[key].view(mx.uint16) if expected[key].dtype == mx.bfloat16 else expected[key]
            assert bytes(data) == bytes(memoryview(mx.contiguous(array)).cast("B")), key


def test_reading_is_lazy(tmp_path: Path) -> None:
    """Only requested tensors are computed."""
    checkpoint, conversion = opened("mixtral", tmp_path / "m")
    held = mx.get_active_memory()  # of tests before this one
    mx.reset_peak_memory()
    first = min(conversion.computed)
    size = len(next(conversion.read(checkpoint, [first])))
    assert size == conversion.specs[first].size_bytes
    # The stacked tensor, its parts, and what MLX rounds up.
    assert mx.get_peak_memory() - held < 4 * size


def test_recipe_tells_configurations_apart(tmp_path: Path) -> None:
    """sanitize may use any field of the configuration, so that a change of any field changes the recipe."""
    checkpoint, conversion = opened("falcon_h1", tmp_path / "m")
    other = Conversion({**checkpoint.config, "embedding_multiplier": 2.0}, specs_of(checkpoint))
    assert conversion.recipe == Conversion(checkpoint.config, specs_of(checkpoint)).recipe
    assert conversion.recipe != other.recipe


def test_sanitize_that_looks_at_values_is_refused() -> None:
    """prism's sanitize looks at signs, which headers do not show: the checkpoint is refused."""
    config = json.loads(json.dumps(CONFIGS["prism_hadamard_qwen35"]))
    config["text_config"]["hidden_size"] = 512
    config["modules"] = [{"block": 512, "dtype": "float16", "embedding": True, "path": "model.embed_tokens"}]
    signs = {"language_model.model.embed_tokens.signs": TensorSpec(dtype="F32", shape=(512,))}
    with pytest.raises(UnsupportedModel, match="according to its tensors' values"):
        Conversion(config, signs)


def test_source_that_changes_before_it_is_computed_is_refused(tmp_path: Path) -> None:
    """A file whose header has changed since it was read is refused, and no tensor is computed from it."""
    checkpoint, conversion = opened("mixtral", tmp_path / "m")
    path = tmp_path / "m" / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes())
    with pytest.raises(WeightFileError, match="changed since its header was read"):
        next(conversion.read(checkpoint, sorted(conversion.computed)))


def test_missing_expert_is_named(tmp_path: Path) -> None:
    """A checkpoint that lacks one of the expert tensors to be joined is refused, with the tensor's name."""
    checkpoint = open_checkpoint(originals.write("mixtral", tmp_path / "m"))
    name = "model.layers.3.block_sparse_moe.experts.2.w3.weight"
    stored = {key: spec for key, spec in specs_of(checkpoint).items() if key != name}
    with pytest.raises(UnsupportedModel, match=r"experts\.2\.w3") as caught:
        Conversion(checkpoint.config, stored)
    assert "do not match its config.json" in caught.value.what


@pytest.mark.parametrize(
    ("field", "command"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "mlx_lm.convert --hf-path MODEL"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "mlx_lm.convert --hf-path MODEL"),
        ({"quant_method": "bitnet"}, "mlx_lm.convert --hf-path MODEL"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "mlx_lm.convert --hf-path ORIGINAL"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "mlx_lm.convert --hf-path ORIGINAL"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "mlx_lm.convert --hf-path ORIGINAL"),
        ({"quant_method": "tomorrow"}, "mlx_lm.convert --hf-path ORIGINAL"),
        ({"bits": 4, "group_size": 64}, "mlx_lm.convert --hf-path ORIGINAL"),
    ],
    ids=lambda value: value.get("quant_method", "none") if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("nested", [False, True])
def test_foreign_quantisation_is_refused_by_name(field: dict[str, Any], command: str, nested: bool) -> None:
    """A format that mlx-lm repacks or cannot read is refused with the command that converts it."""
    config = tiny.config("llama")
    stored = converted(config)
    config |= {"text_config": {"quantization_config": field}} if nested else {"quantization_config": field}
    with pytest.raises(UnsupportedModel) as caught:
        Dissection(config, stored)
    assert command in caught.value.hint
    assert field.get("quant_method", "unnamed") in caught.value.what


def test_quantised_activations_are_refused() -> None:
    """QQLinear quantises activations, which the proof does not cover: it is refused."""
    config = tiny.config("llama")
    stored = converted(config)
    with pytest.raises(UnsupportedModel, match="quantize_activations") as caught:
        Dissection({**config, "quantize_activations": True}, stored)
    assert "mlx_lm.convert" in caught.value.hint


def test_quantisation_beside_the_configuration_is_refused(tmp_path: Path) -> None:
    """Quantisation stated outside config.json is refused: a shard carries config.json alone."""
    folder = originals.write("llama", tmp_path / "m")
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    with pytest.raises(UnsupportedModel, match=r"mlx_lm\.convert"):
        open_checkpoint(folder)


@pytest.mark.parametrize("dtype", ["F64", "F8_E5M2"])
def test_dtype_that_mlx_does_not_read_is_refused(dtype: str) -> None:
    """A shard with such a dtype could not be loaded by a node."""
    config = tiny.config("llama")
    name = "model.norm.weight"
    with pytest.raises(UnsupportedModel, match=name):
        Conversion(config, {**converted(config), name: TensorSpec(dtype=dtype, shape=(64,))})
