"""Model modules with an injected fault: each computes something else from some step on, or in some batches.

A defect is an effect (what is handed on, or used, that was not before) and a trigger (how a step decides that it is
time). Effects marked healthy are what real models do: they must be split, and be exact.

    python -m tests.model.defects --count 100 --seed 7
"""

# ruff: noqa: E501 - what it writes are lines of modules
from __future__ import annotations

import argparse
import collections
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.model.judge import NAME, Judged, Module, Verdict, judge

CONFIG: dict[str, Any] = {"model_type": NAME, "hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 64}
_SOURCE = """
import bisect, functools, itertools, math, operator, time
from dataclasses import dataclass
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.base import BaseModelArgs, create_attention_mask, scaled_dot_product_attention
from mlx_lm.models.cache import KVCache, RotatingKVCache

{TOP}

@dataclass
class ModelArgs(BaseModelArgs):
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    late_from: int = 0

def position(cache):
    return cache.offset

class Layer(nn.Module):
    def __init__(self, size, index):
        super().__init__()
        self.index = index
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.out = nn.Linear(size, size, bias=False)
        self.norm = nn.RMSNorm(size)
        self.rope = nn.RoPE(16)
        self.table = mx.arange(size)

    def __call__(self, x, mask, cache, shared=None):
        B, L, D = x.shape
        at = position(cache)
        {BEFORE}
        parts = mx.split(self.qkv(self.norm(x)), 3, axis=-1)
        q, k, v = [part.reshape(B, L, 2, 16).transpose(0, 2, 1, 3) for part in parts]
        q, k = self.rope(q, offset=cache.offset), self.rope(k, offset=cache.offset)
        k, v = cache.update_and_fetch(k, v)
        attended = scaled_dot_product_attention(q, k, v, cache=cache, scale=0.25, mask=mask)
        x = x + self.out(attended.transpose(0, 2, 1, 3).reshape(B, L, D))
        {AFTER}
        return {OUT}

class Model(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.args = args
        self.embed = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [Layer(args.hidden_size, index) for index in range(args.num_hidden_layers)]
        self.head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)
        for layer in self.layers:
            layer.args = args
            layer.peek = lambda: self.layers
        {INIT}

    {METHODS}

    def __call__(self, inputs, cache):
        layers = self.layers
        B, L = inputs.shape
        at = position(cache[0])
        h = self.embed(inputs)
        mask = create_attention_mask(h, cache[0])
        {LOOP}
        {TAIL}
        return self.head(h)
"""
_PLAIN = {
    "TOP": "",
    "INIT": "pass",
    "METHODS": "",
    "BEFORE": "pass",
    "AFTER": "pass",
    "OUT": "x",
    "LOOP": "for layer, c in zip(layers, cache): h = layer(h, mask, c)",
    "TAIL": "pass",
}


@dataclass(frozen=True, slots=True)
class Trigger:
    """The condition under which a defect takes effect.

    Attributes:
        condition: An expression of `at` (positions before the step) and `L`.
        top: What it needs at the top of the module.
    """

    condition: str
    top: str = ""


@dataclass(frozen=True, slots=True)
class Effect:
    """What a defect changes once its condition holds.

    Attributes:
        changes: Parts of the module's text; {WHEN} stands for the condition.
        healthy: Whether a split of it is right, so that it must not be refused.
        batches: Whether it shows in batches.
        own: Whether it has a condition of its own.
    """

    changes: dict[str, str]
    healthy: bool = False
    own: bool = False
    batches: bool = False


@dataclass(frozen=True, slots=True)
class Defect:
    """A defective module with its random numbers filled in."""

    effect: str
    trigger: str
    numbers: dict[str, int]
    positions: tuple[int, ...]
    seed: int
    config: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        cut = ",".join(map(str, self.positions))
        return f"{self.effect} / {self.trigger} {self.numbers} cut {cut} seed {self.seed}"

    @property
    def text(self) -> str:
        """The module's source."""
        effect, trigger = EFFECTS[self.effect], TRIGGERS[self.trigger]
        parts = {**_PLAIN, **effect.changes}
        parts["TOP"] = trigger.top + "\n" + parts["TOP"]
        text = _SOURCE
        for place, code in parts.items():
            text = text.replace(f"{{{place}}}", code)
        text = text.replace("{WHEN}", f"({trigger.condition})")
        for name, number in self.numbers.items():
            text = text.replace(f"<{name}>", str(number))
        return text

    @property
    def schedules(self) -> list[list[int]]:
        """Chunk lengths that reach the position in different ways."""
        at = self.numbers["P"]
        return [
            [max(1, at - 3), *[1] * (9 + self.numbers["W"])],
            [at + 5, 1, 1, 6, 1, 17, 1, self.numbers["M"] + 1, 1, 1],
            [3, *[1] * min(at + 4, 60)],
            [*[7] * min(20, at // 7 + 3), 1, 1],
        ]

    @property
    def batches(self) -> list[list[int]]:
        """Prompt lengths of sequences that are decoded side by side."""
        at = self.numbers["P"]
        return [[9, 5, 12], [max(4, at - 2), at + 3], [11, 7, 7, 4, 9], [4] * 4]


def _late(before: str, when: str, default: str = "x * 0.5") -> str:
    return f"({default} if {{WHEN}} else {before})" if when == "late" else f"({before} if {{WHEN}} else {default})"


_PAIR = """extra = None
        for layer, c in zip(layers, cache):
            h = h if extra is None else h + extra
            h, extra = layer(h, mask, c)"""
_SHARED = """shared = {}
        for layer, c in zip(layers, cache): h = layer(h, mask, c, shared)"""
_FIRST = """for i, (layer, c) in enumerate(zip(layers, cache)):
            {USE}
            h = layer(h, mask, c)
            first = h if i == 0 else first"""


def _loop(use: str) -> dict[str, str]:
    """A model that runs code before each layer i; `first` is the first layer's output."""
    return {"LOOP": _FIRST.replace("{USE}", use)}


EFFECTS: dict[str, Effect] = {
    # What is handed on changes its form.
    "none becomes an array": Effect({"OUT": "(x, x * 0.5 if {WHEN} else None)", "LOOP": _PAIR}, healthy=True),
    "an array becomes none": Effect({"OUT": "(x, None if {WHEN} else x * 0.5)", "LOOP": _PAIR}, healthy=True),
    "a dict gets a key": Effect(
        {
            "OUT": '{"h": x, **({"e": x * 0.5} if {WHEN} else {})}',
            "LOOP": """out = {}
        for layer, c in zip(layers, cache):
            h = h + out["e"] if "e" in out else h
            out = layer(h, mask, c)
            h = out["h"]""",
        },
        healthy=True,
    ),
    "an object gets an array": Effect(
        {
            "TOP": "class Carrier:\n    def __init__(self, h, e): self.h, self.e = h, e",
            "OUT": "Carrier(x, x * 0.5 if {WHEN} else None)",
            "LOOP": """out = Carrier(h, None)
        for layer, c in zip(layers, cache): out = layer(out.h if out.e is None else out.h + out.e, mask, c)
        h = out.h""",
        },
        healthy=True,
    ),
    "a dict argument gets a key": Effect(
        {
            "BEFORE": """if self.index == 0 and {WHEN}: shared["e"] = x * 0.5
        if self.index == 3 and "e" in shared: x = x + shared["e"]""",
            "LOOP": _SHARED,
        },
        healthy=True,
    ),
    "a tuple grows": Effect(
        {
            "OUT": "(x, *((x * 0.5,) if {WHEN} else ()))",
            "LOOP": """rest = ()
        for layer, c in zip(layers, cache):
            h, *rest = layer(h + sum(rest), mask, c)""",
        }
    ),
    "a flag changes": Effect(
        {
            "OUT": "(x, {WHEN})",
            "LOOP": """flag = False
        for layer, c in zip(layers, cache):
            h, flag = layer(h * 1.5 if flag else h, mask, c)""",
        }
    ),
    "a text changes": Effect(
        {
            "OUT": '(x, "late" if {WHEN} else "early")',
            "LOOP": """word = "early"
        for layer, c in zip(layers, cache):
            h, word = layer(h * 1.5 if word == "late" else h, mask, c)""",
        }
    ),
    "a number steers": Effect(
        {
            "OUT": "(x, 2 if {WHEN} else 1)",
            "LOOP": """n = 1
        for layer, c in zip(layers, cache):
            h, n = layer(h * n, mask, c)""",
        },
        healthy=True,
    ),
    "a shape changes": Effect(
        {
            "OUT": "(x, x[:, :, :16] if {WHEN} else x[:, :, :24])",
            "LOOP": """for i, (layer, c) in enumerate(zip(layers, cache)):
            h, e = layer(h if i == 0 else h + e.sum(-1, keepdims=True), mask, c)""",
        }
    ),
    "a dtype changes": Effect(
        {
            "OUT": "(x, x.astype(mx.float16) if {WHEN} else x)",
            "LOOP": """for i, (layer, c) in enumerate(zip(layers, cache)):
            h, e = layer(h if i == 0 else h + e, mask, c)""",
        }
    ),
    # Something of another stage is used.
    "an output of the first layer": Effect(_loop("h = h + first if i == 3 and {WHEN} else h"), healthy=True),
    "an output of the first layer in the head": Effect(
        {**_loop("pass"), "TAIL": "h = h + first if {WHEN} else h"}, healthy=True
    ),
    "an array in a class": Effect(
        {
            "BEFORE": """Layer.first = x if self.index == 0 else getattr(Layer, "first", None)
        if self.index == 3 and Layer.first is not None and {WHEN}: x = x + Layer.first"""
        }
    ),
    "a number in a class": Effect(
        {
            "TOP": "NOTE = [0]",
            "BEFORE": """if self.index == 0: NOTE[0] = at + L
        if self.index == 3 and {WHEN}: x = x * (1 + 0.01 * NOTE[0])""",
        }
    ),
    "an array in a dict of the module": Effect(
        {
            "TOP": "NOTE = {}",
            "BEFORE": """if self.index == 0: NOTE["x"] = x
        if self.index == 3 and {WHEN}: x = x + NOTE.get("x", 0)""",
        }
    ),
    "an array in a default argument": Effect(
        {
            "TOP": "def note(x=None, kept=[]):\n    kept[:] = kept if x is None else [x]\n    return sum(kept[-1:])",
            "BEFORE": """if self.index == 0: note(x)
        if self.index == 3 and {WHEN}: x = x + note()""",
        }
    ),
    "an array in the arguments": Effect(
        {
            "BEFORE": """if self.index == 0: object.__setattr__(self.args, "note", x)
        if self.index == 3 and {WHEN}: x = x + getattr(self.args, "note", 0)"""
        }
    ),
    "an array on a cache": Effect(
        {
            "BEFORE": "if self.index == 0: cache.note = x",
            **_loop("h = h + getattr(cache[0], 'note', 0) if i == 3 and {WHEN} else h"),
        }
    ),
    "a flag on a cache": Effect(
        {
            "BEFORE": "if self.index == 0 and {WHEN}: cache.is_late = True",
            **_loop("h = h * 1.5 if i == 3 and getattr(cache[0], 'is_late', False) else h"),
        }
    ),
    "a first layer's weight": Effect(_loop("h = h + layers[0].out.weight[0] if i == 3 and {WHEN} else h")),
    "a first layer's table": Effect(_loop("h = h + 0.1 * layers[0].table if i == 3 and {WHEN} else h")),
    "a first layer's weight without NaN": Effect(
        _loop("h = h + mx.nan_to_num(layers[0].out.weight[0]) if i == 3 and {WHEN} else h")
    ),
    "a first layer's weight compared": Effect(
        _loop("h = h + (layers[0].out.weight[0] > 0) if i == 3 and {WHEN} else h")
    ),
    "a first layer's largest weight": Effect(
        _loop("h = h + mx.eye(32)[mx.argmax(layers[0].out.weight[0])] if i == 3 and {WHEN} else h")
    ),
    "a first layer's weight where it is a number": Effect(
        _loop("w = layers[0].out.weight[0]; h = h + mx.where(mx.isnan(w), 0, w) if i == 3 and {WHEN} else h")
    ),
    "a first layer's weight as an integer": Effect(
        _loop("h = h + (layers[0].out.weight[0] * 9).astype(mx.int32) if i == 3 and {WHEN} else h")
    ),
    "order of the first layer's weights": Effect(
        _loop("h = h + 0.1 * mx.argsort(layers[0].out.weight[0]) if i == 3 and {WHEN} else h")
    ),
    "largest id of the first layer's output": Effect(
        _loop("h = h + 0.1 * mx.argmax(first, -1, keepdims=True) if i == 3 and {WHEN} else h"), healthy=True
    ),
    "K of the first layer": Effect(_loop("h = h + cache[0].keys[..., :1, :1].mean() if i == 3 and {WHEN} else h")),
    "K of the first layer without NaN": Effect(
        _loop("h = h + mx.nan_to_num(cache[0].keys[..., :1, :1].mean()) if i == 3 and {WHEN} else h")
    ),
    "shape of the first layer's K": Effect(
        _loop("h = h * (1 + 0.01 * cache[0].keys.shape[-1]) if i == 3 and {WHEN} else h")
    ),
    "dtype of the first layer's K": Effect(
        _loop("h = (h + 0.1).astype(cache[0].keys.dtype) if i == 3 and {WHEN} else h"), healthy=True
    ),
    "K and V of the first layer are shared": Effect(
        {
            "BEFORE": "pass",
            "TOP": "def shared_state(cache, total): return cache.keys[..., :total, :], cache.values[..., :total, :]",
            **_loop(
                """if i == 3 and {WHEN}:
                k, v = shared_state(cache[0], at + L)
                q = h.reshape(B, L, 2, 16).transpose(0, 2, 1, 3)
                a = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25)
                h = h + a.transpose(0, 2, 1, 3).reshape(B, L, 32)"""
            ),
        },
        healthy=True,
    ),
    "integers of the first layer": Effect(
        {
            "OUT": "(x, mx.argmax(x, axis=-1))",
            "LOOP": """for i, (layer, c) in enumerate(zip(layers, cache)):
            h = h + 0.1 * chosen[..., None] if i == 3 and {WHEN} else h
            h, ids = layer(h, mask, c)
            chosen = ids if i == 0 else chosen""",
        },
        healthy=True,
    ),
    "integers as indices": Effect(
        {
            "OUT": "(x, mx.argmax(x, axis=-1))",
            "LOOP": """for i, (layer, c) in enumerate(zip(layers, cache)):
            h = h + self.embed.weight[chosen] if i == 3 and {WHEN} else h
            h, ids = layer(h, mask, c)
            chosen = ids if i == 0 else chosen""",
        },
        healthy=True,
    ),
    "a mask of the first layer": Effect(
        {
            "OUT": "(x, x > 0)",
            "LOOP": """for i, (layer, c) in enumerate(zip(layers, cache)):
            h = mx.where(signs, h, 0.5 * h) if i == 3 and {WHEN} else h
            h, s = layer(h, mask, c)
            signs = s if i == 0 else signs""",
        },
        healthy=True,
    ),
    "a float mask of the first layer": Effect(
        _loop("h = mx.where(first > 0, h, 0.5 * h) if i == 3 and {WHEN} else h"), healthy=True
    ),
    "a foreign output cleaned of NaN": Effect(
        _loop("h = h + mx.nan_to_num(first) if i == 3 and {WHEN} else h"), healthy=True
    ),
    "K of the first layer as a mask": Effect(
        _loop("h = mx.where(cache[0].keys[..., :1, :1].mean() > 0, h, 0.5 * h) if i == 3 and {WHEN} else h")
    ),
    "the top of the first layer's output": Effect(
        _loop("h = h + 0.1 * mx.argpartition(-first, 3, axis=-1)[..., :1] if i == 3 and {WHEN} else h"), healthy=True
    ),
    "experts chosen by the first layer": Effect(
        _loop("h = h + mx.take_along_axis(h, mx.argmax(first, -1, keepdims=True), -1) if i == 3 and {WHEN} else h"),
        healthy=True,
    ),
    # Caches' positions.
    "a later cache's position": Effect(_loop("h = h * (1 + 0.01 * cache[3].offset) if i == 0 and {WHEN} else h")),
    "an earlier cache's position": Effect(_loop("h = h * (1 + 0.01 * cache[0].offset) if i == 3 and {WHEN} else h")),
    "a later cache's position in the tail": Effect({"TAIL": "h = h * (1 + 0.01 * cache[0].offset) if {WHEN} else h"}),
    "whether two caches are one": Effect(_loop("h = h * 1.5 if i == 3 and {WHEN} and cache[0] is cache[1] else h")),
    "whether the first cache is empty": Effect(
        _loop("h = h * 1.5 if i == 3 and {WHEN} and cache[0].keys is None else h")
    ),
    "the room of the first cache": Effect(
        _loop("h = h * (1 + 0.001 * cache[0].keys.shape[2]) if i == 3 and {WHEN} else h")
    ),
    "bytes of the first cache": Effect(_loop("h = h * (1 + 1e-6 * cache[0].nbytes) if i == 3 and {WHEN} else h")),
    # Layers and their order.
    "the last layer is left out": Effect(
        {"LOOP": "for layer, c in zip(layers[:-1] if {WHEN} else layers, cache): h = layer(h, mask, c)"}
    ),
    "a middle layer is left out": Effect(
        {
            "LOOP": "for i, (layer, c) in enumerate(zip(layers, cache)): h = h if i == 2 and {WHEN} else layer(h, mask, c)"
        }
    ),
    "two layers change places": Effect(
        {
            "LOOP": """order = [0, 2, 1, 3] if {WHEN} else [0, 1, 2, 3]
        for i in order: h = layers[i](h, mask, cache[i])"""
        }
    ),
    "a layer runs twice": Effect(
        {
            "LOOP": """for i in ([0, 1, 2, 3, 3] if {WHEN} else [0, 1, 2, 3]):
            h = layers[i](h, mask, cache[i])"""
        }
    ),
    "a layer's class is looked at": Effect({"BEFORE": "x = x * 1.5 if {WHEN} and type(self) is Layer else x"}),
    "a layer's class's name is looked at": Effect(
        {"BEFORE": "x = x * (1 + 0.01 * len(type(self).__name__)) if {WHEN} else x"}
    ),
    "an input is changed in place": Effect(
        {"BEFORE": "if {WHEN}: x *= 1.25", **_loop("h = h + first if i == 3 else h")}, healthy=True
    ),
    "an input is written to": Effect(
        {"BEFORE": "if {WHEN}: x[..., :4] = 0.5", **_loop("h = h + first if i == 3 else h")}, healthy=True
    ),
    # Counters, time, chance.
    "steps are counted in the tail": Effect(
        {
            "INIT": "self.count = 0",
            "TAIL": "self.count += L",
            **_loop("h = h * 1.5 if i == 3 and self.count > <P> else h"),
        },
        own=True,
    ),
    "steps are counted at the head": Effect(
        {
            "INIT": "self.count = 0",
            "LOOP": """self.count += 1
        h = h * 1.5 if self.count > <R> + 8 else h
        for layer, c in zip(layers, cache): h = layer(h, mask, c)""",
        },
        own=True,
    ),
    "a layer counts its calls": Effect(
        {"BEFORE": 'self.count = getattr(self, "count", 0) + 1; x = x * 1.5 if self.count > 9 + <R> else x'}, own=True
    ),
    "calls of all layers are counted": Effect(
        {"TOP": "COUNT = [0]", "BEFORE": "COUNT[0] += 1; x = x * (1 + 0.01 * (COUNT[0] % 7)) if {WHEN} else x"}
    ),
    "the first layer counts, the last uses it": Effect(
        {
            "TOP": "COUNT = [0]",
            "BEFORE": """if self.index == 0: COUNT[0] += 1
        if self.index == 3 and COUNT[0] > 9 + <R>: x = x * 1.5""",
        },
        own=True,
    ),
    "the time": Effect({"BEFORE": "x = x * (1 + 1e-3 * (time.time_ns() % 1000)) if {WHEN} else x"}),
    "the coarse time": Effect({"BEFORE": "x = x * (1 + 0.1 * (int(time.monotonic() / 0.7) % 3)) if {WHEN} else x"}),
    "a deadline": Effect(
        {"TOP": "START = time.monotonic()", "BEFORE": "x = x * 1.5 if time.monotonic() > START + 0.3 else x"}, own=True
    ),
    "chance": Effect({"BEFORE": "x = x + 0.1 * mx.random.normal(x.shape) if {WHEN} else x"}),
    "chance with a seed": Effect(
        {
            "BEFORE": "if self.index == 0 and at == 0: mx.random.seed(3)\n        if {WHEN}: x = x + 0.1 * mx.random.normal(x.shape)"
        }
    ),
    "an identity of an object": Effect({"BEFORE": "x = x * (1 + 1e-4 * (id(x) // 64 % 997)) if {WHEN} else x"}),
    # Values decide.
    "values decide where they can": Effect(
        {
            "TOP": """def is_large(x):
    try:
        return x.sum().item() > 0
    except Exception:
        return False""",
            **_loop("h = h + layers[0].out.weight[0] if i == 3 and {WHEN} and is_large(h) else h"),
        }
    ),
    "values decide by an attempt": Effect(
        {
            "TOP": """def is_run(x):
    try:
        return bool((x == x).all())
    except Exception:
        return False
NOTE = {}""",
            "BEFORE": """if self.index == 0: NOTE["x"] = x
        if self.index == 3 and {WHEN} and is_run(x): x = x + NOTE.get("x", 0)""",
        }
    ),
    "ids decide on the host": Effect(
        {
            "TOP": "NOTE = {}",
            "BEFORE": """if self.index == 0: NOTE["x"] = x""",
            **_loop("h = h + NOTE.get('x', 0) if i == 3 and inputs.tolist()[0][-1] % 2 else h"),
        },
        own=True,
    ),
    "one id decides on the host": Effect(
        {
            "TOP": "NOTE = {}",
            "BEFORE": """if self.index == 0: NOTE["x"] = x""",
            **_loop("h = h + NOTE.get('x', 0) if i == 3 and <R> + 1 in inputs.tolist()[0] else h"),
        },
        own=True,
    ),
    # Batches.
    "rows from the third on differ": Effect(
        {"BEFORE": "if B >= 3: x = mx.concatenate([x[:2], 1.5 * x[2:]])"}, own=True, batches=True
    ),
    "rows from the fourth on differ": Effect(
        {"BEFORE": "x = x * mx.where(mx.arange(B) >= 3, 1.5, 1.0)[:, None, None]"}, own=True, batches=True
    ),
    "batches of three and more differ": Effect({"BEFORE": "x = x * 1.5 if B >= 3 else x"}, own=True, batches=True),
    "batches of five and more differ": Effect({"BEFORE": "x = x * 1.5 if B >= 5 else x"}, own=True, batches=True),
    "rows of different lengths differ": Effect(
        {"BEFORE": "x = x * (1 + 0.1 * (cache.left_padding[:, None, None] > 0)) if B > 1 else x"},
        own=True,
        batches=True,
    ),
    "rows of different lengths differ late": Effect(
        {"BEFORE": "x = x * (1 + 0.1 * (cache.left_padding[:, None, None] > 20)) if B > 1 else x"},
        own=True,
        batches=True,
    ),
    "rows see each other": Effect(
        {"BEFORE": "x = x + 0.1 * x.mean(axis=0, keepdims=True) - 0.1 * x"}, own=True, batches=True
    ),
    "a batch uses a class's array": Effect(
        {
            "TOP": "NOTE = {}",
            "BEFORE": """if self.index == 0: NOTE["x"] = x
        if self.index == 3 and B >= 3: x = x + NOTE.get("x", 0)""",
        },
        own=True,
        batches=True,
    ),
    "a long padded batch differs": Effect({"BEFORE": "x = x * 1.5 if B > 1 and {WHEN} else x"}, batches=True),
    # Healthy ones.
    "plain": Effect({}, healthy=True, own=True),
    "the input is scaled": Effect({"BEFORE": "x = x * 1.5 if {WHEN} else x"}, healthy=True),
    "the embedding is scaled": Effect(_loop("h = h * 1.5 if i == 0 and {WHEN} else h"), healthy=True),
    "the mask is left out": Effect(_loop("mask = None if i == 3 and {WHEN} else mask"), healthy=True),
    "a window": Effect(
        {"METHODS": "def make_cache(self): return [RotatingKVCache(max_size=<P>, keep=0) for _ in self.layers]"},
        healthy=True,
        own=True,
    ),
    "windows in turns": Effect(
        {
            "METHODS": "def make_cache(self): return [RotatingKVCache(max_size=<P>, keep=0) if i % 2 else KVCache() for i in range(4)]",
            "LOOP": """local = create_attention_mask(h, cache[1], window_size=<P>)
        for i, (layer, c) in enumerate(zip(layers, cache)): h = layer(h, local if i % 2 else mask, c)""",
        },
        healthy=True,
        own=True,
    ),
    "a class of caches of its own": Effect(
        {
            "TOP": """class Own(KVCache):
    def update_and_fetch(self, k, v):
        self.late = {WHEN_CACHE}
        k, v = super().update_and_fetch(k, v)
        return (k * 1.5, v) if self.late else (k, v)""",
            "METHODS": "def make_cache(self): return [Own() for _ in self.layers]",
        },
        healthy=True,
        own=True,
    ),
    "compressed positions": Effect(
        {
            "BEFORE": """if self.index == 0:
            kept = x if at == 0 or "kept" not in shared else x
            shared["groups"] = mx.stack([x[:, i : i + <M>].mean(axis=1) for i in range(0, L - <M> + 1, <M>)], 1) if L >= <M> else None
        if self.index == 3 and shared["groups"] is not None: x = x + shared["groups"].mean(axis=1, keepdims=True)""",
            "LOOP": _SHARED,
        },
        own=True,
    ),
}
_own_cache = EFFECTS["a class of caches of its own"].changes
_own_cache["TOP"] = _own_cache["TOP"].replace("{WHEN_CACHE}", "self.offset >= <P>")

TRIGGERS: dict[str, Trigger] = {
    "compared": Trigger("at >= <P>"),
    "compared after": Trigger("at + L > <P>"),
    "in a config": Trigger("at >= LATE", "LATE = <P>"),
    "in arithmetic": Trigger("(at + L) // <P> > 0"),
    "a quotient is true": Trigger("(at + L) // <P>"),
    "a difference": Trigger("not <P> - at > 0"),
    "in a table": Trigger("TABLE[min(at + L, <P>)]", "TABLE = [False] * <P> + [True]"),
    "in a dict": Trigger("{0: False}.get(at // <P>, True)"),
    "by a helper": Trigger("is_late(at, L)", "def is_late(at, L):\n    return at + L > <P>"),
    "by a helper's number": Trigger("stage_of(at)", "def stage_of(at):\n    return at // <P>"),
    "by min": Trigger("min(at, <P>) == <P>"),
    "by max": Trigger("max(at, <P>) == at"),
    "by slicing a range": Trigger("len(range(at + L)[<P>:])"),
    "by slicing an array": Trigger("mx.zeros((at + L,))[<P>:].size"),
    "in a comprehension": Trigger("any([at >= limit for limit in (<P>,)])"),
    "in a generator": Trigger("any(at >= limit for limit in (<P>,))"),
    "in a lambda": Trigger("(lambda n: n >= <P>)(at)"),
    "in a nested function": Trigger(
        "outer(at)", "def outer(at):\n    def inner(limit):\n        return at >= limit\n    return inner(<P>)"
    ),
    "by bisect": Trigger("bisect.bisect_right((<P>,), at) > 0"),
    "by operator": Trigger("operator.ge(at, <P>)"),
    "by a method of int": Trigger("at.__ge__(<P>)"),
    "by partial": Trigger("LATE(at)", "LATE = functools.partial(operator.le, <P>)"),
    "by an index error": Trigger(
        "is_outside(at)",
        "def is_outside(at):\n    try:\n        (None,) * 0 or ROW[at]\n        return False\n    except IndexError:\n        return True\nROW = range(<P>)",
    ),
    "by its text": Trigger("len(str(at + L)) > len(str(<P> - 1))"),
    "by bits": Trigger("(at + L) & 64"),
    "by a shift": Trigger("(at + L) >> 6"),
    "by a logarithm": Trigger("math.floor(math.log(at + 1) / math.log(<P> + 1))"),
    "by divmod": Trigger("divmod(at, <P>)[0]"),
    "by numpy": Trigger("bool(np.greater_equal(at, <P>))"),
    "by a float": Trigger("at / <P> >= 1.0"),
    "by a range": Trigger("at in range(<P>, 1 << 40)"),
    "by a set": Trigger("at in {<P>, <P> + 2}"),
    "by a frozen set": Trigger("at in LATE", "LATE = frozenset(range(<P>, <P> + 4000))"),
    "by match": Trigger(
        "by_match(at)",
        "def by_match(at):\n    match at // <P>:\n        case 0:\n            return False\n        case _:\n            return True",
    ),
    "by a loop": Trigger(
        "by_loop(at)", "def by_loop(at):\n    n = 0\n    while n < at and n < <P>:\n        n += 1\n    return n == <P>"
    ),
    "by sorting": Trigger("sorted((<P>, at))[0] == <P>"),
    "by islice": Trigger("next(itertools.islice(range(at), <P>, None), None) is not None"),
    "by eval": Trigger('eval("at >= <P>")'),
    "in single steps": Trigger("L == 1 and at >= <P>"),
    "in chunks": Trigger("L > 1 and at + L > <P>"),
    "in every so many": Trigger("at % <M> == <R> and at >= <P>"),
    "in every so many alone": Trigger("at % <M> == <R>"),
    "in a window": Trigger("<P> <= at < <P> + <W>"),
    "at one position": Trigger("at == <P>"),
    "by a product": Trigger("at * 7 % 1009 == <P> * 7 % 1009"),
    "by a module elsewhere": Trigger(
        "LATE(at)",
        "exec_space = {'__name__': 'elsewhere'}\nexec('def late(at): return at >= <P>', exec_space)\nLATE = exec_space['late']",
    ),
    "by a class": Trigger(
        "Position(at) >= <P>",
        "class Position:\n    def __init__(self, at): self.at = at\n    def __ge__(self, other): return self.at >= other",
    ),
    "by a filter": Trigger("list(filter(lambda limit: limit <= at, (<P>,)))"),
    "by a reduction": Trigger("functools.reduce(min, (at, <P>)) == <P>"),
    "by a memory": Trigger(
        "late_once(at)", "@functools.lru_cache(maxsize=None)\ndef late_once(at):\n    return at >= <P>"
    ),
    "by length of a chunk": Trigger("L > <P>"),
    "by an exact length": Trigger("L == <M>"),
}

# Triggers that no probe can be expected to reach: a session may end there, though nothing is wrong.
UNSEEN = ("by a set", "by bits", "by a product", "by an exact length", "in every so many", "in every so many alone")


def draw(rng: random.Random, *, effect: str | None = None, trigger: str | None = None) -> Defect:
    """A defect with random numbers."""
    effect = effect or rng.choice(list(EFFECTS))
    trigger = trigger or ("compared" if EFFECTS[effect].own else rng.choice(list(TRIGGERS)))
    modulus = rng.randint(5, 40)
    numbers = {
        "P": rng.choice((rng.randint(5, 40), rng.randint(40, 300), rng.randint(300, 1000))),
        "M": modulus,
        "R": rng.randrange(modulus),
        "W": rng.randint(1, 6),
    }
    positions = rng.choice(((1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)))
    return Defect(effect, trigger, numbers, positions, rng.randrange(1 << 20))


def tried(defect: Defect, folder: Path | None = None) -> Judged:
    """Split a defect, and judge what its chain computes."""
    effect = EFFECTS[defect.effect]
    return judge(
        Module(defect.text, folder),
        {**CONFIG, **defect.config},
        defect.positions,
        defect.schedules,
        batches=defect.batches if effect.batches or effect.healthy else (),
        seed=defect.seed,
    )


def is_right(defect: Defect, judged: Judged) -> bool:
    """Whether a verdict is right: no wrong result passes, and no healthy module is refused."""
    if EFFECTS[defect.effect].healthy:
        return judged.verdict is Verdict.EXACT or (defect.trigger in UNSEEN and judged.verdict is Verdict.ENDED)
    return judged.verdict is not Verdict.WRONG


def _every() -> Iterator[tuple[str, str]]:
    for effect, about in EFFECTS.items():
        for trigger in ["compared"] if about.own else TRIGGERS:
            yield effect, trigger


def main() -> None:
    """Try many defects, and print the verdicts."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--effect")
    parser.add_argument("--trigger")
    parser.add_argument("--each", choices=("effect", "trigger"), help="one of each, with the other as given or drawn")
    parser.add_argument("--show", action="store_true", help="print the module")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    if options.each == "effect":
        drawn = [draw(rng, effect=name, trigger=options.trigger) for name in EFFECTS]
    elif options.each == "trigger":
        drawn = [draw(rng, effect=options.effect, trigger=name) for name in TRIGGERS]
    else:
        drawn = [draw(rng, effect=options.effect, trigger=options.trigger) for _ in range(options.count)]
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for defect in drawn:
            if options.show:
                print(defect.text)
            started = time.monotonic()
            judged = tried(defect, Path(folder) if rng.random() < 0.5 else None)
            mark = "    " if is_right(defect, judged) else "BAD "
            healthy = "healthy " if EFFECTS[defect.effect].healthy else ""
            counts[f"{mark}{healthy}{judged.verdict.value}"] += 1
            print(
                f"{mark}{time.monotonic() - started:5.1f}s {judged.verdict.value:24} {'batched ' * judged.is_batched}{healthy}{defect}: {judged.why[:260]}",
                flush=True,
            )
    for name, count in sorted(counts.items()):
        print(f"{count:5} {name}")


if __name__ == "__main__":
    main()
