"""Model modules that pass the proof by graph and are wrong when cut: their fault shows only in values.

While a computation is traced nothing can be evaluated. A module that has somebody else look at values where that can be
done, and does something else where it cannot, is traced as one model and runs as another.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

NAME = "inexact"
# Its proof is that of a plain model. When it runs, each layer of a stage adds `strength`: a layer can tell by its class
# that it is tapped.
SOURCE = """
from dataclasses import dataclass
import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import BaseModelArgs, create_attention_mask, scaled_dot_product_attention
from tests.inexact import is_run

@dataclass
class ModelArgs(BaseModelArgs):
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    strength: float

class Layer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.out = nn.Linear(size, size, bias=False)
        self.norm = nn.RMSNorm(size)
        self.rope = nn.RoPE(16)

    def __call__(self, x, mask, cache):
        B, L, D = x.shape
        if type(self) is not Layer and is_run(x):
            x = x + self.args.strength
        parts = mx.split(self.qkv(self.norm(x)), 3, axis=-1)
        q, k, v = [part.reshape(B, L, 4, 16).transpose(0, 2, 1, 3) for part in parts]
        q, k = self.rope(q, offset=cache.offset), self.rope(k, offset=cache.offset)
        k, v = cache.update_and_fetch(k, v)
        attended = scaled_dot_product_attention(q, k, v, cache=cache, scale=0.25, mask=mask)
        return x + self.out(attended.transpose(0, 2, 1, 3).reshape(B, L, D))

class Model(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.args = args
        self.embed = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [Layer(args.hidden_size) for _ in range(args.num_hidden_layers)]
        self.head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)
        for layer in self.layers:
            layer.args = args

    def __call__(self, inputs, cache):
        h = self.embed(inputs)
        mask = create_attention_mask(h, cache[0])
        for layer, c in zip(self.layers, cache):
            h = layer(h, mask, c)
        return self.head(h)
"""


def is_run(array: mx.array) -> bool:
    """Whether arrays can be evaluated, that is, outside a trace."""
    try:
        mx.eval(array.sum())
    except (RuntimeError, ValueError):
        return False
    return True


def register(patch: pytest.MonkeyPatch) -> None:
    """Put the module where mlx-lm's registry looks for it."""
    module = ModuleType(f"mlx_lm.models.{NAME}")
    patch.setitem(sys.modules, module.__name__, module)
    exec(compile(SOURCE, f"{NAME}.py", "exec"), vars(module))


def save(folder: Path, *, strength: float) -> Path:
    """Write a model of the module.

    Args:
        folder: Where to.
        strength: How far its stages are from the whole model; 0 makes them exact.
    """
    config = {
        "model_type": NAME,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "vocab_size": 512,
        "strength": strength,
    }
    module = sys.modules[f"mlx_lm.models.{NAME}"]
    mx.random.seed(7)
    model = module.Model(module.ModelArgs.from_dict(config))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder
