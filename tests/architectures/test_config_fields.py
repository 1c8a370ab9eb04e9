"""The table of config.json's fields against the installed mlx-lm: what modules read, and numbers after translation."""

from __future__ import annotations

import copy
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.utils import MODEL_ARCHITECTURE_REMAPPING, MODEL_REMAPPING, _get_classes

from shardhub.checkpoint import unread_fields
from shardhub.checkpoint.unread_fields import read_fields
from tests.architectures.config_reads import module_reads
from tests.architectures.matrix import CONFIGS, Whole, random_model, run, token_ids, upstream_modules
from tests.architectures.standins import standing_in

pytestmark = pytest.mark.architectures

TABLE: dict[str, Any] = json.loads(Path(unread_fields.__file__).with_name("config_fields.json").read_text())
READS: dict[str, list[str]] = json.loads(Path(__file__).with_name("config_reads.json").read_text())
AGAIN = "python benchmarks/config_fields.py"
ROTARY = sorted(
    name
    for name, entry in TABLE["modules"].items()
    if name in CONFIGS and (entry.get("rope") or {}).get("theta") == "rope_theta"
)
LINEAR = [name for name in ROTARY if "linear" in TABLE["modules"][name]["rope"]["types"]]


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def logits(config: dict[str, Any], weights: nn.Module) -> mx.array:
    """Logits of a short text by a model of this configuration with another model's weights."""
    model_class, args_class = _get_classes(config=config)
    model = model_class(args_class.from_dict(copy.deepcopy(config)))
    model.eval()
    model.update(weights.parameters())
    (out,) = run(Whole(model), token_ids(1, 4, seed=2), (4,))
    mx.eval(out)
    return out


def test_table_is_of_the_installed_mlx_lm() -> None:
    """The table has an entry for every module, and maps each model type to the module that mlx-lm runs for it."""
    assert TABLE["mlx_lm"] == version("mlx-lm"), AGAIN
    assert set(upstream_modules()) == set(READS), AGAIN
    assert set(READS) <= set(TABLE["modules"])
    assert {**TABLE["types"], "mistral": "llama", "falcon_mamba": "mamba", "qwen2_5_vl": "qwen2_vl"} == MODEL_REMAPPING
    assert {(kind, name): module for kind, name, module in TABLE["architectures"]} == MODEL_ARCHITECTURE_REMAPPING


def test_modules_read_what_the_table_was_made_of() -> None:
    """Each module reads the fields it read when the table was made, and none that the table lists as never read."""
    changed: dict[str, Any] = {}
    for module in upstream_modules():
        with standing_in(module):
            fields = module_reads(module, CONFIGS[module])
        if fields != READS[module]:
            changed[module] = sorted(set(fields) ^ set(READS[module]))
        assert not set(fields) & TABLE["modules"][module].get("unread", {}).keys(), module
    assert changed == {}, AGAIN


@pytest.mark.parametrize("name", ROTARY)
def test_translated_rotary_embedding_gives_the_same_numbers(name: str) -> None:
    """Base and scaling, where the module has one, give the same bits from `rope_parameters` as from the old names."""
    with standing_in(name):
        weights = random_model(CONFIGS[name])
        old, new = copy.deepcopy(CONFIGS[name]), copy.deepcopy(CONFIGS[name])
        text_part(old).pop("rope_parameters", None)
        text_part(old)["rope_theta"] = 333.0
        if name in LINEAR:
            text_part(old)["rope_scaling"] = {"type": "linear", "rope_type": "linear", "factor": 4.0}
        scaling = dict(text_part(old).get("rope_scaling") or {})
        kind = scaling.pop("type", "default")
        for field in ("rope_theta", "rope_scaling"):
            text_part(new).pop(field, None)
        text_part(new)["rope_parameters"] = {**scaling, "rope_type": kind, "rope_theta": 333.0}
        reading = read_fields(new)
        expected = logits(old, weights)
        assert mx.array_equal(logits(dict(reading.config), weights), expected, equal_nan=True)
        text_part(old)["rope_theta"] = 7e6
        assert not mx.array_equal(logits(old, weights), expected), "the base changes nothing"


def test_untranslated_rotary_embedding_is_another_models() -> None:
    """Without the translation a llama silently runs with its own default base."""
    weights = random_model(CONFIGS["llama"])
    config = {key: value for key, value in CONFIGS["llama"].items() if key != "rope_theta"}
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 333.0}
    default = {key: value for key, value in config.items() if key != "rope_parameters"}
    assert mx.array_equal(logits(config, weights), logits(default, weights))
    assert not mx.array_equal(logits(dict(read_fields(config).config), weights), logits(default, weights))
