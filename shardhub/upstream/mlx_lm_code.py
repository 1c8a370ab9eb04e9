"""mlx_lm: the parts of its loader that read a config and find and quantise a model, which have no public name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.nn as nn


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
