"""Upstream's own forward and caches, and running them without evaluating anything."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import cache as caches

from shardhub.errors import ShardhubError, UnsupportedModel
from shardhub.model import poison
from shardhub.model.arrays import dtype_name
from shardhub.model.build import first_line
from shardhub.model.tracing import unevaluated
from shardhub.tensors import TensorSpec


def make_cache(model: nn.Module) -> list[Any]:
    """Upstream's own cache list for a model."""
    cache: list[Any] = caches.make_prompt_cache(model)
    return cache


def forward(model: nn.Module, ids: mx.array, cache: list[Any]) -> mx.array:
    """Upstream's forward: logits (B, L, V) for token ids (B, L)."""
    out = model(ids, cache=cache)
    logits: mx.array = out[0] if isinstance(out, tuple) else out
    return logits


def run_lazily(model: nn.Module, ids: mx.array, cache: list[Any]) -> None:
    """Run a forward on placeholders, evaluating nothing.

    A forward that reads values gets an error, as in a trace; evaluating many positions would crash.

    Raises:
        UnsupportedModel: The forward cannot be run lazily.
    """
    nowhere = poison.parameter(TensorSpec(dtype=dtype_name(ids.dtype), shape=tuple(ids.shape)))
    try:
        with unevaluated():
            forward(model, nowhere, cache)
    except ShardhubError:
        raise
    except Exception as error:  # upstream's forwards may raise anything
        raise UnsupportedModel(
            "The model's forward cannot be run on placeholders, so the model cannot be cut.",
            why=f"mlx-lm's code stopped: {first_line(error)}.",
        ) from error
