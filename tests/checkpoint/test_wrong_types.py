"""Fields of config.json whose values have the wrong type."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from shardhub.checkpoint.checkpoint import open_checkpoint
from shardhub.checkpoint.config import quantization
from shardhub.checkpoint.costs import model_costs
from shardhub.checkpoint.unread_fields import read_fields
from shardhub.errors import FormatError, ShardhubError
from tests.checkpoints import write_checkpoint

WRONG: list[Any] = [None, True, -1, 0, 3.5, float("inf"), "x", "", [], [1], ["a"], {}, {"a": 1}, [[]], 10**30]
FIELDS = [
    *("model_type", "architectures", "text_config", "llm_config", "num_hidden_layers", "n_layer", "hidden_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "intermediate_size", "layer_types"),
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "rms_norm_eps", "sliding_window"),
    *("sliding_window_pattern", "max_window_layers", "use_sliding_window", "max_position_embeddings", "num_experts"),
    *("quantization", "quantization_config", "eos_token_id", "tie_word_embeddings", "hybrid_override_pattern"),
    *("block_configs", "layers_block_type", "torch_dtype", "shardhub", "moe_intermediate_size", "kv_lora_rank"),
    *("original_max_position_embeddings", "full_attention_interval", "num_experts_per_tok", "sliding_attention"),
]
INNER: list[tuple[str, str]] = [
    ("quantization", "bits"),
    ("quantization_config", "quant_method"),
    ("quantization_config", "format"),
    ("rope_scaling", "type"),
    ("rope_scaling", "factor"),
    ("rope_parameters", "rope_type"),
    ("rope_parameters", "rope_theta"),
    ("text_config", "quantization_config"),
    ("text_config", "model_type"),
    ("text_config", "rope_scaling"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("types")
    write_checkpoint(folder, config={"quantization": {"bits": 4, "group_size": 8}})
    return folder


def is_read(folder: Path, **changes: Any) -> None:
    """Read the changed model as `plan` does before MLX is imported; only our own errors may be raised."""
    path = folder / "config.json"
    before = path.read_bytes()
    path.write_text(json.dumps({**json.loads(before), **changes}))
    try:
        with contextlib.suppress(ShardhubError):
            checkpoint = open_checkpoint(folder)
            reading = read_fields(checkpoint.config)
            reading.later(4096)
            quantization(reading.config)
            model_costs(checkpoint.with_config(reading.config), 4096)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("field", FIELDS)
def test_wrong_type_of_a_field_is_harmless_or_refused(field: str, model: Path) -> None:
    """Whatever a field of config.json holds, the model is read, or refused by an error of ours."""
    for value in WRONG:
        is_read(model, **{field: value})


@pytest.mark.parametrize(("outer", "field"), INNER)
def test_wrong_type_within_a_field_is_harmless_or_refused(outer: str, field: str, model: Path) -> None:
    """The same holds for nested fields."""
    for value in WRONG:
        is_read(model, **{outer: {"type": "linear", "factor": 2.0, "bits": 4, "group_size": 8, field: value}})


def test_strings_are_shown_as_strings(model: Path) -> None:
    """A number given as a string is shown in quotes, so that the mistake is visible."""
    path = model / "config.json"
    before = path.read_bytes()
    path.write_text(json.dumps({**json.loads(before), "num_hidden_layers": "4"}))
    with pytest.raises(FormatError, match='num_hidden_layers is "4", expected an integer'):
        open_checkpoint(model)
    path.write_bytes(before)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({f"field_{number}": 1 for number in range(100_000)}, "fields, and at most"),
        ({"layer_types": ["full_attention"] * 4000}, "layer_types has 4000 entries"),
        ({"layer_types": ["full_attention"] * 10_000, "num_hidden_layers": 4096}, "layer_types has 10000 entries"),
    ],
)
def test_configuration_that_takes_long_to_read_is_refused(changes: dict[str, Any], text: str, model: Path) -> None:
    """Lists longer than any model's are refused: mlx-lm's modules make a layer for each entry."""
    path = model / "config.json"
    before = path.read_bytes()
    path.write_text(json.dumps({**json.loads(before), **changes}))
    with pytest.raises(FormatError, match=text):
        open_checkpoint(model)
    path.write_bytes(before)
