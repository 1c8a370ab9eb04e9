"""Public models' configurations and the headers of their checkpoints: shapes and dtypes, no weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from shardhub.model.build import spec_of
from shardhub.tensors import TensorSpec

_FOLDER = Path(__file__).parent / "public_configs"


def config(name: str) -> dict[str, Any]:
    """A public model's config.json, as far as mlx-lm reads it."""
    loaded: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text())
    return loaded


def headers(config: dict[str, Any]) -> dict[str, TensorSpec]:
    """What the headers of a converted checkpoint say, in bfloat16 or quantised as the configuration says.

    Upstream's model is built, and initialised lazily: nothing of it is evaluated.
    """
    model_class, args_class = _get_classes(config=dict(config))
    model = model_class(args_class.from_dict(copy.deepcopy(config)))
    if quantization := config.get("quantization"):
        nn.quantize(model, **quantization)
    elif config.get("quantization_config", {}).get("quant_method") == "mxfp4":
        nn.quantize(
            model,
            group_size=32,
            bits=4,
            mode="mxfp4",
            class_predicate=lambda path, module: hasattr(module, "to_quantized") and ".experts." in path,
        )
    specs = {name: spec_of(array) for name, array in tree_flatten(model.parameters())}
    if config["model_type"].startswith("gemma3"):  # the published checkpoints are tied
        specs = {name: spec for name, spec in specs.items() if "lm_head" not in name}
    return {
        name: TensorSpec(dtype="BF16", shape=spec.shape) if spec.dtype == "F32" else spec
        for name, spec in specs.items()
    }
