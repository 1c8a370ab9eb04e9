"""The chain of stages against the unsplit model, bit for bit, for each architecture at every boundary."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from shardhub.model.anatomy import Anatomy, examine
from shardhub.model.arrays import from_raw, to_raw
from shardhub.model.build import Blueprint, spec_of
from shardhub.model.proof import prove_chain
from shardhub.model.reach import Needs, find_needs, stage_cut, stage_tensors
from shardhub.model.stage import Stage, cache_arrays
from tests import tiny

pytestmark = pytest.mark.architectures


class Taken:
    """A model whose parts are known, ready to be run in stages."""

    def __init__(self, model, config) -> None:
        self.weights = dict(tree_flatten(model.parameters()))
        self.blueprint = Blueprint(config, {name: spec_of(array) for name, array in self.weights.items()})
        self.anatomy: Anatomy = examine(self.blueprint)
        self.needs: Needs = find_needs(self.blueprint, self.anatomy)

    def cuts(self, positions):
        ends = [0, *positions, self.anatomy.num_layers]
        return [stage_cut(start, stop, self.anatomy, self.needs) for start, stop in pairwise(ends)]

    def stage(self, cut):
        """A stage whose weights outside its own set are NaN, so that any use of them shows."""
        model = self.blueprint.build()
        own = stage_tensors(cut.start, cut.stop, self.anatomy, self.needs)
        values = {name: array if name in own else _poison(array) for name, array in self.weights.items()}
        model.update(tree_unflatten(list(values.items())))
        return Stage(model, self.anatomy, cut.start, cut.stop, cut.crossings_in, cut.crossings_out)

    def run(self, positions, chunks):
        """Logits of the last position of each chunk; everything that crosses is serialised to bytes."""
        stages = [self.stage(cut) for cut in self.cuts(positions)]
        states = [stage.new_cache() for stage in stages]
        position = 0
        outs = []
        for ids in chunks:
            crossing = {}
            for stage, state in zip(stages, states, strict=True):
                incoming = {name: from_raw(raw) for name, raw in crossing.items()}
                out = stage.run(mx.array([ids], mx.int32), state, incoming, position=position)
                mx.eval(cache_arrays(state.view))
                if isinstance(out, mx.array):
                    outs.append(out[0, -1])
                    mx.eval(outs[-1])
                else:
                    crossing = {name: to_raw(leaf) for name, leaf in out.items()}
            position += len(ids)
        return outs


def _poison(array):
    if mx.issubdtype(array.dtype, mx.floating):
        return mx.full(array.shape, float("nan"), array.dtype)
    return mx.zeros_like(array)


def same(a, b) -> bool:
    return all(bool(mx.array_equal(x, y).item()) for x, y in zip(a, b, strict=True))


def make(name, *, tied=None, dtype=mx.float32, bits=None, mixed=False):
    config = tiny.config(name, tied=tied)
    model = tiny.build(config, dtype=dtype)
    if bits is not None:
        config = tiny.quantize(model, config, bits=bits, mixed=mixed)
    return model, config


@pytest.mark.parametrize("name", list(tiny.CONFIGS))
def test_chain_equals_the_unsplit_model_at_every_boundary(name) -> None:
    """Two stages at each boundary, and three stages, give the logits of the whole model bit for bit."""
    model, config = make(name)
    chunks = tiny.chunks()
    expected = tiny.run_whole(model, chunks)
    assert all(bool(mx.isfinite(out).all().item()) and mx.std(out).item() > 0.01 for out in expected)
    taken = Taken(model, config)
    for positions in [(cut,) for cut in range(1, tiny.NUM_LAYERS)] + [(2, 3)]:
        assert same(taken.run(positions, chunks), expected), positions


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", tiny.TIEABLE)
def test_tied_and_untied_heads_are_exact(name, tied) -> None:
    """The last stage has the embedding if and only if the head is tied to it."""
    model, config = make(name, tied=tied)
    taken = Taken(model, config)
    assert same(taken.run((2, 4), tiny.chunks()), tiny.run_whole(model, tiny.chunks()))
    last = stage_tensors(4, tiny.NUM_LAYERS, taken.anatomy, taken.needs)
    assert any("embed_tokens" in tensor for tensor in last) == tied
    middle = stage_tensors(2, 4, taken.anatomy, taken.needs)
    assert all(".layers." in tensor for tensor in middle)


@pytest.mark.parametrize(("bits", "mixed"), [(4, False), (8, False), (4, True)])
@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "gemma3", "phi3", "deepseek_v2", "gpt_oss"])
def test_quantised_chain_is_exact(name, bits, mixed) -> None:
    """4-bit, 8-bit and mixed quantisation give the same logits, split and unsplit."""
    model, config = make(name, bits=bits, mixed=mixed)
    taken = Taken(model, config)
    assert same(taken.run((1, 4), tiny.chunks()), tiny.run_whole(model, tiny.chunks()))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "phi3"])
def test_half_precision_chain_is_exact(name, dtype) -> None:
    """bfloat16 and float16 cross the wire bit for bit."""
    model, config = make(name, dtype=dtype)
    taken = Taken(model, config)
    assert same(taken.run((3,), tiny.chunks()), tiny.run_whole(model, tiny.chunks()))


@pytest.mark.parametrize("name", list(tiny.CONFIGS))
def test_graph_proves_every_boundary(name) -> None:
    """At every boundary the chained stages' graph has the hash of the whole model's."""
    model, config = make(name)
    taken = Taken(model, config)
    for cut in range(1, tiny.NUM_LAYERS):
        prove_chain(taken.blueprint, taken.anatomy, taken.cuts((cut,)))
    prove_chain(taken.blueprint, taken.anatomy, taken.cuts((1, 2, 5)))
