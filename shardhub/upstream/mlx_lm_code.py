"""mlx_lm: the parts of its loader and of its converter that read a config, and find and quantise a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.nn as nn

    # Decides on a module by its path: whether it is quantised, or with which parameters.
    Predicate = Callable[[str, nn.Module], bool | dict[str, Any]]


def decode_infinities(config: Mapping[str, Any]) -> Any:
    """Decode the infinities in a config that transformers writes as {"__float__": "Infinity"}."""
    from mlx_lm.utils import _decode_tagged_floats

    return _decode_tagged_floats(dict(config))


def model_classes(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The model class and the arguments class, from mlx_lm's own registry."""
    from mlx_lm.utils import _get_classes

    model_class, arguments_class = _get_classes(config=dict(config))
    return model_class, arguments_class


def takes_global_scale(module: nn.Module) -> bool:
    """Whether a module's quantised class has one global scale beside the scale of each group."""
    from mlx_lm.utils import _takes_global_scale

    return bool(_takes_global_scale(module))


def quantize(
    model: nn.Module, config: Mapping[str, Any], *, bits: int, group_size: int, mode: str, predicate: Predicate | None
) -> dict[str, Any]:
    """Quantise a model in place as mlx_lm.convert does, unevaluated; returns the config that records it.

    Args:
        model: The model, or a tree of some of its modules.
        config: config.json, without quantisation.
        bits, group_size, mode: Quantisation of a module for which `predicate` states none.
        predicate: Decides on each module; None takes every one that can be quantised.
    """
    from mlx_lm.utils import quantize_model

    with redirect_stdout(StringIO()):  # it prints the mean of the bits
        _, quantized = quantize_model(model, dict(config), group_size, bits, mode=mode, quant_predicate=predicate)
    return dict(quantized)


def mixed_predicate(recipe: str, model: nn.Module, group_size: int) -> Predicate:
    """The predicate of a recipe of mixed bits, for a whole model.

    Raises:
        ValueError: The recipe does not suit the model.
    """
    from mlx_lm.convert import mixed_quant_predicate_builder

    predicate: Predicate = mixed_quant_predicate_builder(recipe, model, group_size)
    return predicate
