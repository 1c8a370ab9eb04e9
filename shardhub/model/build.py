"""Building upstream's own model object from a config and headers, without any weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from shardhub.checkpoint.config import mlx_quantization, text_config
from shardhub.errors import UnsupportedModel
from shardhub.model.arrays import dtype_name, placeholder
from shardhub.tensors import TensorSpec
from shardhub.upstream.mlx_lm_code import decode_infinities, model_classes, takes_global_scale

# Names of mlx-lm's modules; a path would lead out of its package.
_MODEL_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
# Source: Python's message for a call without fields that have no default.
_ABSENT = re.compile(r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)")
# Most token ids that a trial draws from.
_MAX_TRIAL_IDS = 64
# Hint for a model that cannot be cut.
RUN_WHOLE = "Run it unsplit on one machine: mlx_lm.generate --model MODEL"
# Hint for a checkpoint that disagrees with its own config.json, and so was not published that way.
_GET_AGAIN = "mlx-lm refuses this checkpoint too: download it again, or use a conversion that mlx-lm loads."


class Blueprint:
    """Everything needed to build a model object: its config and the headers of all its tensors.

    Args:
        config: The model's config.json.
        tensors: Dtype and shape of every parameter of the whole model, by final name.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> None:
        self.config = dict(config)
        self.tensors = dict(tensors)

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model has rows for, as its configuration states; 0 if it states none."""
        return self.number("vocab_size", "padded_vocab_size", "num_vocab")

    @property
    def num_trial_ids(self) -> int:
        """Number of token ids that a trial may invent: memory behind the embedding's last row is undefined."""
        return min(_MAX_TRIAL_IDS, self.vocab_size or _MAX_TRIAL_IDS)

    def number(self, *fields: str) -> int:
        """The first of the fields that the configuration or its text part has; 0 without one."""
        for block in (self.config, text_config(self.config)):
            for field in fields:
                if isinstance(block.get(field), int):
                    return int(block[field])
        return 0

    def build(self, *, stand_in: Callable[[TensorSpec], mx.array] = placeholder) -> nn.Module:
        """Build a new model object whose parameters are placeholders of one element each.

        Each trace needs a new one: some models cache derived arrays or assign their own weights in the forward.

        Args:
            stand_in: Makes the placeholders: zeros, or unusable arrays for parameters that a stage does not own.

        Raises:
            UnsupportedModel: The architecture is unknown, or config and headers disagree.
        """
        model = instantiate(self.config)
        weights = {name: stand_in(spec) for name, spec in self.tensors.items()}
        # Called for its effect on the model (gemma3_text drops lm_head if the checkpoint is tied); the result is not
        # needed, since names are final already.
        sanitize(model, {name: placeholder(spec) for name, spec in self.tensors.items()})
        _quantize(model, self.config, weights)
        model.eval()
        parameters = dict(tree_flatten(model.parameters()))
        _check_names(parameters, weights)
        model.update(tree_unflatten(list(weights.items())))
        return model


def module_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a model object, in order.

    Raises:
        UnsupportedModel: The model has no list of layers, or uses one layer object twice.
    """
    layers = list(getattr(model, "layers", None) or [])
    if not layers or not all(isinstance(layer, nn.Module) for layer in layers):
        raise UnsupportedModel(
            f"{type(model).__module__} does not have a list of layers, so it cannot be cut.", hint=RUN_WHOLE
        )
    if len({id(layer) for layer in layers}) != len(layers):
        raise UnsupportedModel(f"{type(model).__module__} uses one layer object at several positions.", hint=RUN_WHOLE)
    return layers


def layer_of_tensors(model: nn.Module) -> dict[str, int | None]:
    """Decoder layer of every parameter; None for those outside the layers."""
    prefixes = {}
    index_of = {id(layer): index for index, layer in enumerate(module_layers(model))}
    for name, module in model.named_modules():
        if id(module) in index_of:
            prefixes[name + "."] = index_of[id(module)]
    result: dict[str, int | None] = {}
    for name, _ in tree_flatten(model.parameters()):
        result[name] = next((index for prefix, index in prefixes.items() if name.startswith(prefix)), None)
    return result


def hidden_dtype(specs: Mapping[str, TensorSpec]) -> str:
    """The floating-point dtype of most bytes; that of the scales if weights are packed integers."""
    sizes: dict[str, int] = {}
    for spec in specs.values():
        if spec.dtype in ("BF16", "F16", "F32", "F64"):
            sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.size_bytes
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else "F32"


def instantiate(config: Mapping[str, Any]) -> nn.Module:
    """Upstream's Model for this config, lazily initialised.

    Raises:
        UnsupportedModel: The architecture is unknown, or the config is unusable or names code of its own.
    """
    for field in ("model_file", "auto_map"):
        if field in config:
            raise UnsupportedModel(
                f"config.json refers to code in the model's repo ({field}).",
                why="shardhub never runs code from a model's repo.",
                hint="Use a conversion of the model that mlx-lm runs without that code.",
            )
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UnsupportedModel(
            "config.json does not have a model_type.", hint="Download config.json again from the model's publisher."
        )
    unknown = UnsupportedModel(
        f"mlx-lm does not support the architecture {model_type[:80]!r}.",
        hint="A later version may support it: pip install --upgrade mlx-lm",
    )
    if not _MODEL_TYPE.fullmatch(model_type):
        raise unknown
    try:
        model_class, args_class = model_classes(config)
    except (ValueError, AttributeError, TypeError) as error:  # there is no such module, or it is not a model's
        raise unknown from error
    try:
        model: nn.Module = model_class(args_class.from_dict(decode_infinities(config)))
    except Exception as error:  # 126 modules run on untrusted values and check nothing
        raise UnsupportedModel(
            f"mlx-lm cannot build {model_type!r} from this config.json.",
            why=_reason(error),
            hint="Download config.json again from the model's publisher, or try a later version of mlx-lm.",
        ) from error
    return model


def sanitize(model: nn.Module, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Make a model's tensors from the full set of a checkpoint's by upstream's sanitize, which may change the model.

    Raises:
        UnsupportedModel: The tensors do not fit this model.
    """
    if not hasattr(model, "sanitize"):
        return dict(weights)
    try:
        result: dict[str, mx.array] = model.sanitize(weights)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise UnsupportedModel(
            "The checkpoint's tensors do not match its config.json.",
            why=f"mlx-lm's sanitize stopped: {_reason(error)}",
            hint="Convert it with mlx_lm.convert, and split the result.",
        ) from error
    return result


def _quantize(model: nn.Module, config: Mapping[str, Any], weights: Mapping[str, mx.array]) -> None:
    """Turn modules into their quantised classes as upstream does. Source: mlx_lm/utils.py, load_model."""
    from mlx_lm.utils import infer_quant_config

    if config.get("quantize_activations"):
        raise UnsupportedModel(
            "A model with quantised activations (quantize_activations in config.json) cannot be split yet.",
            hint="Convert the original without quantised activations, then split the result: "
            "mlx_lm.convert --hf-path MODEL --mlx-path FOLDER -q",
        )
    quantization = mlx_quantization(config)
    if quantization is None:
        return

    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if path in quantization:
            override: bool | dict[str, Any] = quantization[path]
            return override
        if not hasattr(module, "to_quantized") or f"{path}.scales" not in weights:
            return False
        params: dict[str, Any] = infer_quant_config(path, module, weights)
        if f"{path}.global_scale" in weights and takes_global_scale(module):
            params["global_scale"] = True
        return params

    try:
        nn.quantize(
            model,
            group_size=quantization["group_size"],
            bits=quantization["bits"],
            mode=quantization.get("mode", "affine"),
            class_predicate=predicate,
        )
    except KeyError as error:
        raise UnsupportedModel(
            "The checkpoint's tensors do not match its config.json.",
            why=f"Missing: {error.args[0]}, although its scales are present.",
            hint=_GET_AGAIN,
        ) from error
    except (ValueError, TypeError) as error:
        raise UnsupportedModel(
            "config.json and the quantised tensors disagree.", why=_reason(error), hint=_GET_AGAIN
        ) from error


def _check_names(parameters: Mapping[str, mx.array], weights: Mapping[str, mx.array]) -> None:
    missing = sorted(parameters.keys() - weights.keys())
    extra = sorted(weights.keys() - parameters.keys())
    if missing or extra:
        raise UnsupportedModel(
            "The checkpoint's tensors do not match its config.json.",
            why=f"Missing: {', '.join(missing[:3]) or 'none'} ({len(missing)}); "
            f"not in the model: {', '.join(extra[:3]) or 'none'} ({len(extra)}).",
            hint=_GET_AGAIN,
        )
    for name, array in parameters.items():
        if array.shape != weights[name].shape:
            raise UnsupportedModel(
                f"The shape of tensor {name} does not match config.json.",
                why=f"The checkpoint has {list(weights[name].shape)}, and config.json implies {list(array.shape)}.",
                hint=_GET_AGAIN,
            )


def first_line(error: Exception) -> str:
    """The message of an mlx-lm error on one line, without its class, which means nothing to the reader."""
    return str(error).partition("\n")[0].rstrip(".")[:300] or "no reason was given"


def _reason(error: Exception) -> str:
    """The message of an mlx-lm error without the names of its classes and functions."""
    text = str(error).partition("\n")[0].rstrip(".")
    if isinstance(error, KeyError):
        return f"{text[:100]} is missing."
    if (absent := _ABSENT.search(text)) is not None:
        return f"It lacks {absent[1]}."
    if isinstance(error, TypeError | AttributeError):
        return "A value in it has a type that mlx-lm's module does not accept."
    return f"{text[:1].upper()}{text[1:300]}." if text else "The error has no message."


def spec_of(array: mx.array) -> TensorSpec:
    """Dtype and shape of an array."""
    return TensorSpec(dtype=dtype_name(array.dtype), shape=tuple(array.shape))
