"""A model module in mlx-lm's style that the mechanism has never met, with changes inserted."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

NAME = "unseen"
CONFIG: dict[str, Any] = {"model_type": NAME, "hidden_size": 64, "num_hidden_layers": 6, "vocab_size": 96}
# A module in mlx-lm's style. {BEFORE} runs in a layer before attention, {OUT} is what it returns, {LOOP} runs the
# layers, which are in {LAYERS}.
SOURCE = """
from dataclasses import dataclass
import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import BaseModelArgs, create_attention_mask, scaled_dot_product_attention

@dataclass
class ModelArgs(BaseModelArgs):
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int

class Layer(nn.Module):
    def __init__(self, size, index):
        super().__init__()
        self.index = index
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.out = nn.Linear(size, size, bias=False)
        self.norm = nn.RMSNorm(size)
        self.rope = nn.RoPE(16)

    def __call__(self, x, mask, cache, shared=None):
        {BEFORE}
        B, L, D = x.shape
        parts = mx.split(self.qkv(self.norm(x)), 3, axis=-1)
        q, k, v = [part.reshape(B, L, 4, 16).transpose(0, 2, 1, 3) for part in parts]
        q, k = self.rope(q, offset=cache.offset), self.rope(k, offset=cache.offset)
        k, v = cache.update_and_fetch(k, v)
        attended = scaled_dot_product_attention(q, k, v, cache=cache, scale=0.25, mask=mask)
        x = x + self.out(attended.transpose(0, 2, 1, 3).reshape(B, L, D))
        return {OUT}

class Model(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.args = args
        self.embed = nn.Embedding(args.vocab_size, args.hidden_size)
        self.{LAYERS} = [Layer(args.hidden_size, index) for index in range(args.num_hidden_layers)]
        self.head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(self, inputs, cache):
        layers = self.{LAYERS}
        h = self.embed(inputs)
        mask = create_attention_mask(h, cache[0])
        {LOOP}
        return self.head(h)
"""
PLAIN = {
    "BEFORE": "pass",
    "OUT": "x",
    "LAYERS": "layers",
    "LOOP": "for layer, c in zip(layers, cache): h = layer(h, mask, c)",
}


def put_module(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], *, top: str = "") -> None:
    """Put a module with these differences from the plain one, and this code on top, where mlx-lm's registry looks."""
    text = SOURCE.replace("@dataclass", f"{top}\n@dataclass", 1)
    for place, code in {**PLAIN, **changes}.items():
        text = text.replace(f"{{{place}}}", code)
    module = ModuleType(f"mlx_lm.models.{NAME}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(text, f"{NAME}.py", "exec"), vars(module))
