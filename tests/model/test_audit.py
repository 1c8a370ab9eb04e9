"""A forward may depend only on its inputs, weights and caches: anything else that it keeps or reads is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from shardhub.errors import UnsupportedModel
from shardhub.model.build import Blueprint, spec_of
from shardhub.model.dissection import Dissection
from shardhub.model.probing import find_chunks
from tests import public
from tests.architectures.matrix import random_model
from tests.model.unseen import CONFIG, PLAIN, put_module

# Each change is written from the first step on, wherever it may be read.
KEPT = {
    "a global": ("NOTE = {}", "NOTE['x'] = x", "unseen.NOTE['x']"),
    "a counter in a list": ("COUNT = [0]", "COUNT[0] += 1", "unseen.COUNT[0]"),
    "a toggle": ("FLAG = [False]", "FLAG[0] = not FLAG[0] if self.index == 0 else FLAG[0]", "unseen.FLAG[0]"),
    "a class attribute": ("", "Layer.first = x", "unseen.Layer.first"),
    "an attribute of a layer": ("", "self.count = getattr(self, 'count', 0) + L_(x)", "model.layers[0].count"),
    "an attribute of a norm": ("", "object.__setattr__(self.norm, 'last', x)", "model.layers[0].norm.last"),
    "the arguments": ("", "object.__setattr__(self.rope, 'args', L_(x))", "model.layers[0].rope.args"),
    "a default argument": (
        "def note(x, kept=[]):\n    kept[:] = [x]",
        "note(x)",
        "unseen.note (defaults)[0][0]",
    ),
    "a closure": (
        "def make():\n    n = 0\n    def add():\n        nonlocal n\n        n += 1\n    return add\nadd = make()",
        "add()",
        "unseen.make.<locals>.add (n)",
    ),
    "an iterator": ("import itertools\nIDS = itertools.count()", "next(IDS)", "unseen.IDS.position"),
    "a generator": (
        "def count():\n    n = 0\n    while True:\n        n += 1\n        yield n\nIDS = count()",
        "next(IDS)",
        "unseen.IDS",
    ),
    "a queue": (
        "from collections import deque\nLAST = deque(maxlen=3)",
        "LAST.append(x)",
        "unseen.LAST",
    ),
    "a set": ("SEEN = set()", "SEEN.add(cache.offset)", "unseen.SEEN"),
    "an array written to": ("TABLE = mx.zeros((4,))", "TABLE[1] = x.sum()", "unseen.TABLE"),
    "an array added to": ("", "w = self.norm['weight']; w += 1", "model.layers[0].norm.weight"),
    "a weight that grows": ("", "self.norm.weight = self.norm.weight + 1", "model.layers[0].norm.weight"),
    "a weight that is an output": (
        "",
        "self.norm.weight = x[0, 0]",
        "model.layers[0].norm.weight",
    ),
    "a numpy array": ("import numpy as np\nN = np.zeros(2)", "N[0] += 1", "unseen.N"),
    "a memo's result": (
        "import functools\n@functools.lru_cache\ndef holder():\n    return [0]",
        "holder()[0] += 1",
        "[0]",
    ),
    "another module": ("import math", "math.at = cache.offset", "math.at"),
    "an attribute of a cache": ("", "cache.note = x", "cache[0].note, an array"),
    "a note that is dropped again": (
        "NOTE = {}",
        "NOTE.update(x=x) if self.index == 0 else NOTE.pop('x', None) if self.index == 5 else 0",
        "unseen.NOTE['x']",
    ),
}
ASKED = {
    "the time": ("import time", "x = x * (1 if time.monotonic() > 3 else 2)", "time.monotonic at unseen.py"),
    "a date": ("import datetime", "x = x * datetime.datetime.now().year", "datetime.now at unseen.py"),
    "chance": ("import random", "x = x * random.random()", "random.random at unseen.py"),
    "chance between": ("import random", "x = x * random.randint(1, 3)", "random.randint at unseen.py"),
    "the environment": ("import os", "x = x * len(os.environ.get('HOME', ''))", "at unseen.py"),
    "the process": ("from os import getpid", "x = x * getpid()", "getpid at unseen.py"),
    "numpy's chance": ("import numpy as np", "x = x * float(np.random.rand())", "numpy.random"),
    "numpy's own chance": ("import numpy as np", "x = x * float(np.random.default_rng().random())", "at unseen.py"),
    "mlx's chance": ("", "x = x + mx.random.normal(x.shape)", "mlx.core.random"),
    "an identity": ("", "x = x * (id(x) % 7)", "builtins.id at unseen.py"),
    "a secret": ("import secrets", "x = x * secrets.randbelow(3)", "at unseen.py"),
}
ON_THE_HOST = {
    "an attempt": (
        "def f(x):\n    try:\n        return bool((x == x).all())\n    except Exception:\n        return False",
        "x = x * (2 if f(x) else 1)",
        "ValueError at unseen.py",
    ),
    "an attempt at numpy": (
        "import numpy as np\ndef f(x):\n    try:\n        return np.array(x).sum()\n    except:\n        return 1",
        "x = x * f(x)",
        "at unseen.py",
    ),
    "an attempt within contextlib": (
        "from contextlib import suppress",
        "with suppress(Exception): x = x * x.sum().item()",
        "ValueError at unseen.py",
    ),
    "an expert that is compared": (
        "",
        "x = x * (2 if mx.argmax(x, -1).tolist()[0][0] == 7 else 1)",
        "used in eq at unseen.py",
    ),
    "an expert that is looked for": ("", "x = x * (2 if 7 in mx.argmax(x, -1).tolist()[0] else 1)", "used in eq"),
    "an expert that is a key": ("", "x = x * {0: 1, 7: 2}.get(mx.argmax(x, -1).tolist()[0][0], 1)", "used in hash"),
    "an even expert": ("", "x = x * (1 + mx.argmax(x, -1).tolist()[0][0] % 2)", "used in mod"),
}
HEALTHY = {
    "derived once": ("", "self.kept = getattr(self, 'kept', None) or (self.norm.weight + 1, 2)"),
    "made anew of the same": ("", "object.__setattr__(self, 'sizes', {'heads': (4, 16)})"),
    "a weight cast": ("", "self.norm.weight = self.norm.weight.astype(mx.float32)"),
    "a weight clipped": ("", "self.norm.weight = mx.clip(self.norm.weight, -120, 120)"),
    "a memo": ("import functools\n@functools.lru_cache\ndef half(n):\n    return n / 2", "half(cache.offset)"),
    "a local array written to": ("", "x = x + 0; x[..., 0] = 1; x += 1"),
    "a key of its own": ("", "x = x + mx.random.normal((64,), key=mx.random.key(3))"),
    "a cache's own attribute": ("", "cache.offset = cache.offset + 0"),
    "a duration": ("import datetime\nDAY = datetime.timedelta(days=1)", "x = x * DAY.days"),
}


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Blueprint]:
    """Puts a module with these changes where mlx-lm's registry looks, and returns its model's blueprint."""

    def put(top: str = "", **changes: str) -> Blueprint:
        put_module(monkeypatch, changes, top=f"{top}\ndef L_(x): return x.shape[1]\n")
        parameters = tree_flatten(random_model(CONFIG).parameters())
        return Blueprint(
            {**CONFIG, "max_position_embeddings": 200}, {name: spec_of(array) for name, array in parameters}
        )

    return put


@pytest.mark.parametrize("case", list(KEPT))
def test_state_beside_the_caches_is_refused_by_its_path(case: str, put: Callable[..., Blueprint]) -> None:
    """State that is written is refused even if no tried step reads it, as a later step may."""
    top, before, path = KEPT[case]
    with pytest.raises(UnsupportedModel, match="keeps state") as refused:
        find_chunks(put(top, BEFORE=before))
    assert path in refused.value.why
    assert refused.value.hint


def test_count_in_the_tail_is_refused(put: Callable[..., Blueprint]) -> None:
    """A counter in the code behind the layers is refused: that code runs on the last stage only."""
    blueprint = put(LOOP=f"{PLAIN['LOOP']}\n        self.count = getattr(self, 'count', 0) + 1")
    with pytest.raises(UnsupportedModel, match=r"model\.count, which was 2 and became 3"):
        find_chunks(blueprint)


@pytest.mark.parametrize("case", list(ASKED))
def test_question_beside_the_inputs_is_refused_by_its_name(case: str, put: Callable[..., Blueprint]) -> None:
    """Reading the clock, randomness or the process is refused: each stage would get another answer."""
    top, before, called = ASKED[case]
    with pytest.raises(UnsupportedModel, match="differ between processes") as refused:
        find_chunks(put(top, BEFORE=before))
    assert called in refused.value.what


@pytest.mark.parametrize("case", list(HEALTHY))
def test_what_derives_from_weights_alone_is_not_refused(case: str, put: Callable[..., Blueprint]) -> None:
    """Values that are kept from the first step, or made anew, are accepted if they are equal in every process."""
    top, before = HEALTHY[case]
    find_chunks(put(top, BEFORE=before))


def test_what_derives_from_quantised_weights_is_not_refused(put: Callable[..., Blueprint]) -> None:
    """Packed integer weights are treated as integers when values derived from them are checked."""
    packed = "self.qkv.weight, self.qkv.scales, self.qkv.biases, group_size=32, bits=4"
    put(BEFORE=f"object.__setattr__(self.norm, 'kept', mx.dequantize({packed}))")
    quantization = {"group_size": 32, "bits": 4}
    model = random_model(CONFIG)
    nn.quantize(model, **quantization)
    tensors = {name: spec_of(array) for name, array in tree_flatten(model.parameters())}
    config = {**CONFIG, "quantization": quantization, "max_position_embeddings": 200}
    find_chunks(Blueprint(config, tensors))


@pytest.mark.parametrize("case", list(ON_THE_HOST))
def test_values_on_the_host_are_refused_where_they_decide(case: str, put: Callable[..., Blueprint]) -> None:
    """Values that are read on the host and decide are refused, also if the forward catches the error and goes on."""
    top, before, place = ON_THE_HOST[case]
    blueprint = put(top, BEFORE=before)
    with pytest.raises(UnsupportedModel, match="reads values on the host") as refused:
        Dissection(blueprint.config, blueprint.tensors)
    assert place in refused.value.what


@pytest.mark.parametrize(
    "asked", ["inputs.tolist()[0][-1] % 2", "7 in inputs.tolist()[0]", "bytes(inputs.tolist()[0])"]
)
def test_token_ids_on_the_host_are_refused(asked: str, put: Callable[..., Blueprint]) -> None:
    """Token ids read on the host are refused: a rare id may decide something that no trace shows."""
    blueprint = put(LOOP=f"h = h * 2 if {asked} else h\n        {PLAIN['LOOP']}")
    with pytest.raises(UnsupportedModel, match="on the host"):
        Dissection(blueprint.config, blueprint.tensors)


def test_experts_that_are_chosen_on_the_host_are_not_refused(put: Callable[..., Blueprint]) -> None:
    """A value that is read on the host only to index a list of experts is accepted."""
    blueprint = put(
        BEFORE="chosen = mx.argmax(x[..., :2], -1).tolist()[0]; experts = [self.norm, self.norm]; "
        "x = mx.stack([experts[e](y) for y, e in zip(x[0], chosen)])[None]"
    )
    Dissection(blueprint.config, blueprint.tensors).prove([(0, 2), (2, 6)])


@pytest.mark.parametrize("size", ["k.shape[2]", "(getattr(cache, '_idx', None) or cache.offset)"])
def test_condition_on_a_padded_length_keeps_sequences_apart(size: str, put: Callable[..., Blueprint]) -> None:
    """A condition on a padded length treats a short row like its longest neighbour, so that batches are ruled out."""
    blueprint = put(OUT=f"x * (2 if {size} > 40 else 1)")
    dissection = Dissection(blueprint.config, blueprint.tensors)
    refusal = dissection.batch_refusal(dissection.prove([(0, 2), (2, 6)]))
    assert refusal is not None
    assert "unseen.py" in refusal
    assert "beside one at" in refusal


def test_condition_beyond_the_twin_keeps_sequences_apart(put: Callable[..., Blueprint]) -> None:
    """A condition on a length beyond those that were compared by numbers rules out batches."""
    blueprint = put(OUT="x * (2 if k.shape[2] > 3000 else 1)")
    dissection = Dissection({**blueprint.config, "max_position_embeddings": 8192}, blueprint.tensors)
    stages = dissection.stages([(0, 2), (2, 6)])
    assert dissection.twin.is_cut_short
    assert "beside one at" in (dissection.twin.batch_refusal or "")
    assert [stage.batched_graph_hash for stage in stages] == [None, None]


def test_plain_module_runs_side_by_side(put: Callable[..., Blueprint]) -> None:
    """A plain module has no condition that depends on another row."""
    dissection = Dissection(CONFIG, put().tensors)
    assert dissection.batch_refusal(dissection.prove([(0, 2), (2, 6)])) is None


def test_audit_leaves_arrays_as_they_were() -> None:
    """The audit restores MLX's methods when it ends."""
    before = {name: getattr(mx.array, name) for name in ("__setitem__", "__iadd__", "tolist")}
    config = public.config("phi-4")
    find_chunks(Blueprint(config, public.headers(config)))
    assert {name: getattr(mx.array, name) for name in before} == before
    assert sys.getprofile() is None
