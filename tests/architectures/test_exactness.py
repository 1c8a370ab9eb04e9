"""Every model module of mlx-lm can be cut, and the chain gives the unsplit model's logits bit for bit.

Here each is cut in three; those that show a mechanism of their own are cut at every boundary.
`benchmarks/architectures.py` does that for all of them and writes docs/architectures.md.
"""

from __future__ import annotations

import importlib

import pytest
from mlx_lm.utils import _get_classes

from shardhub.errors import UnsupportedModel
from shardhub.model.proof import prove_apart
from tests.architectures.matrix import (
    BATCHES,
    CONFIGS,
    LOOPED,
    Specimen,
    Whole,
    boundaries,
    difference,
    random_model,
    reference,
    run,
    token_ids,
    upstream_modules,
)
from tests.architectures.standins import standing_in

pytestmark = pytest.mark.architectures

# What each of these shows that no other does.
MECHANISMS = {
    "afm7": "the last layers use K and V of one earlier layer's cache",
    "dbrx": "the forward chooses experts on the host",
    "deepseek_v41": "a dict argument that layers change, crossings that grow, a cache class of its own",
    "gemma3n": "K and V of earlier layers; per-layer inputs from token ids; the tail writes into captured arrays",
    "gemma4_text": "K and V of earlier layers handed on as outputs, with an offset",
    "hunyuan": "K and V shared by pairs of layers",
    "kimi_k3": "an object of arrays beside the hidden states",
    "llama": "masks of full and sliding layers, each made from the cache of another layer",
    "llama4": "caches that drop their front by chunks",
    "longcat_flash_ngram": "a cache that belongs to no layer; two caches in a layer",
    "muse_spark": "a layer applies the norm of the next one",
    "nemotron_h": "layers without a cache",
    "qwen3_next": "recurrent layers beside attention",
    "rwkv7": "a second output of the first layer, used by all",
    "talkie": "every layer takes the embedding of the token ids",
}
CUT = sorted(CONFIGS.keys() - set(LOOPED))


def test_every_upstream_module_has_a_configuration() -> None:
    """Every module of the installed mlx-lm has a configuration here, so that a new module is noticed."""
    assert sorted(CONFIGS) == upstream_modules()


@pytest.mark.parametrize("module", sorted(CONFIGS))
def test_configuration_is_of_the_module_it_is_named_for(module) -> None:
    """Upstream's registry resolves each configuration to the module that it is tested for."""
    with standing_in(module):
        model_class, _ = _get_classes(config=dict(CONFIGS[module]))
        assert model_class is importlib.import_module(f"mlx_lm.models.{module}").Model


@pytest.mark.parametrize("module", LOOPED)
def test_looped_model_is_refused_with_the_reason(module) -> None:
    """A model that runs its layers twice cannot be a chain of stages, and the error says so."""
    with pytest.raises(UnsupportedModel, match="does not run each layer exactly once, in order") as refused:
        Specimen(CONFIGS[module])
    assert module in refused.value.what
    assert refused.value.why


@pytest.mark.parametrize("module", [module for module in CUT if module not in MECHANISMS])
def test_three_stages_are_proven_and_exact(module) -> None:
    """The graph of three chained stages is the whole model's, and so are the logits of every step."""
    with standing_in(module):
        specimen = Specimen(CONFIGS[module])
        specimen.prove(specimen.thirds)
        assert difference(run(specimen.chain(specimen.thirds), token_ids(1)), reference(specimen, 1)) == 0


@pytest.mark.parametrize("module", sorted(MECHANISMS))
def test_every_boundary_is_proven_and_exact(module) -> None:
    """Two stages at each boundary, and three stages, are proven and exact for one sequence and for three."""
    with standing_in(module):
        specimen = Specimen(CONFIGS[module])
        prove_apart(specimen.blueprint, specimen.anatomy, specimen.cuts(specimen.thirds))
        expected = {batch: reference(specimen, batch) for batch in BATCHES}
        for positions in boundaries(specimen):
            assert specimen.is_proven(positions), positions
            chain = specimen.chain(positions)
            for batch in BATCHES:
                assert difference(run(chain, token_ids(batch)), expected[batch]) == 0, (positions, batch)


@pytest.mark.parametrize("module", ["llama", "qwen3_next", "deepseek_v41"])
def test_comparison_tells_one_changed_weight(module) -> None:
    """The comparison can fail: changing one tensor of a middle layer changes the logits."""
    specimen = Specimen(CONFIGS[module])
    other = random_model(CONFIGS[module], seed=1)
    layer = other.layers[specimen.num_layers // 2]
    layer.input_layernorm.weight = layer.input_layernorm.weight * 1.001
    logits = run(Whole(other), token_ids(1))
    assert difference(logits, reference(specimen, 1)) > 0
