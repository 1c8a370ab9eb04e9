"""The proof by graph refuses chains that compute something else, whatever the cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from shardhub.errors import ProofFailed, UnsupportedModel
from shardhub.model import proof
from shardhub.model.build import Blueprint
from shardhub.model.proof import StageCut, prove_chain
from shardhub.model.stage import Stage
from tests.architectures.matrix import CONFIGS, Specimen, difference, reference, run, token_ids
from tests.architectures.standins import standing_in

pytestmark = pytest.mark.architectures

# Where masks or positions of a stage come from the cache of a layer that another stage runs.
GHOSTS_MATTER = (
    "afmoe",
    "bailing_moe_linear",
    "cohere2",
    "deepseek_v41",
    "gemma3n",
    "gpt_oss",
    "llama",
    "mistral4",
    "muse_spark",
    "recurrent_gemma",
)


class FrozenGhosts(Stage):
    """A stage whose ghosts (the stand-ins for other stages' caches) never advance."""

    def run(self, ids, cache, incoming, **kwargs):
        return super().run(ids, replace(cache, ghosts=[]), incoming, **kwargs)


def frozen(stages: Sequence[Stage]) -> list[Stage]:
    """The same stages with frozen ghosts."""
    return [FrozenGhosts(s.model, s.anatomy, s.start, s.stop, s.crossings_in, s.crossings_out) for s in stages]


class SwappedLayers(Stage):
    """A stage whose first two layers, of equal shapes, have swapped weights."""

    def __init__(self, model, anatomy, start, *rest) -> None:
        if start == 0:
            first, second, *_ = model.layers
            weights = first.parameters()
            first.update(second.parameters())
            second.update(weights)
        super().__init__(model, anatomy, start, *rest)


def configured(blueprint: Blueprint, **changes: Any) -> type[Stage]:
    """A stage class whose model, past the first stage, is built from a changed configuration."""
    other = Blueprint({**blueprint.config, **changes}, blueprint.tensors)

    class Reconfigured(Stage):
        def __init__(self, model, anatomy, start, *rest) -> None:
            if start > 0:
                parameters = model.parameters()
                model = other.build()
                model.update(parameters)
            super().__init__(model, anatomy, start, *rest)

    return Reconfigured


def refuse(specimen: Specimen, stage_class: type[Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain is proven, and the same chain of altered stages is refused: its graph differs or cannot be traced."""
    specimen.prove(specimen.thirds)
    monkeypatch.setattr(proof, "Stage", stage_class)
    with pytest.raises(ProofFailed if stage_class is not FrozenGhosts else UnsupportedModel):
        specimen.prove(specimen.thirds)


@pytest.mark.parametrize("module", GHOSTS_MATTER)
def test_frozen_ghosts_are_refused_where_they_matter(module, monkeypatch) -> None:
    """If ghosts do not advance the logits differ, and the proof refuses the chain before anything is computed."""
    with standing_in(module):
        specimen = Specimen(CONFIGS[module])
        chain = specimen.chain(specimen.thirds)
        expected = reference(specimen, 1)
        assert difference(run(chain, token_ids(1)), expected) == 0
        chain.stages = frozen(chain.stages)
        assert difference(run(chain, token_ids(1)), expected) != 0
        refuse(specimen, FrozenGhosts, monkeypatch)


@pytest.mark.parametrize("module", ["deepseek_v3", "kimi_linear", "llama4"])
def test_frozen_ghosts_that_break_the_forward_are_refused(module, monkeypatch) -> None:
    """If frozen ghosts make masks of the wrong size, the chain cannot be traced at all."""
    specimen = Specimen(CONFIGS[module])
    specimen.prove(specimen.thirds)
    monkeypatch.setattr(proof, "Stage", FrozenGhosts)
    with pytest.raises(UnsupportedModel):
        specimen.prove(specimen.thirds)


@pytest.mark.parametrize("module", ["qwen2", "mamba2"])
def test_frozen_ghosts_are_proven_where_nothing_depends_on_them(module, monkeypatch) -> None:
    """The proof covers the computation only: where no mask is made from a ghost, a frozen ghost changes nothing."""
    specimen = Specimen(CONFIGS[module])
    monkeypatch.setattr(proof, "Stage", FrozenGhosts)
    specimen.prove(specimen.thirds)
    chain = specimen.chain(specimen.thirds)
    chain.stages = frozen(chain.stages)
    assert difference(run(chain, token_ids(1)), reference(specimen, 1)) == 0


@pytest.mark.parametrize("module", ["llama", "recurrent_gemma", "gemma3", "mixtral", "mamba2"])
def test_layer_swapped_with_another_is_refused(module, monkeypatch) -> None:
    """Two swapped layers are refused, even where nothing but their weights differs."""
    refuse(Specimen(CONFIGS[module]), SwappedLayers, monkeypatch)


@pytest.mark.parametrize(
    ("module", "changes"),
    [
        ("llama", {"sliding_window": 4}),
        ("gpt_oss", {"sliding_window": 6}),
        ("olmo3", {"sliding_window": 4}),
        ("exaone4", {"sliding_window": 6}),
    ],
)
def test_other_window_in_one_stage_is_refused(module, changes, monkeypatch) -> None:
    """A stage with a longer or shorter window than the model's is refused."""
    specimen = Specimen(CONFIGS[module])
    refuse(specimen, configured(specimen.blueprint, **changes), monkeypatch)


@pytest.mark.parametrize("module", ["llama", "qwen2", "gemma", "gpt_oss", "deepseek_v3"])
def test_other_rope_base_in_one_stage_is_refused(module, monkeypatch) -> None:
    """A stage with another rope base is refused, although all its shapes are right."""
    specimen = Specimen(CONFIGS[module])
    changes = {"rope_theta": CONFIGS[module].get("rope_theta", 10000.0) * 2}
    refuse(specimen, configured(specimen.blueprint, **changes), monkeypatch)


@pytest.mark.parametrize(
    "module", ["llama", "rwkv7", "muse_spark", "kimi_k3", "hunyuan", "gemma4_text", "deepseek_v41"]
)
def test_crossing_left_out_is_refused(module) -> None:
    """Each array that crosses a cut is needed: a chain without any one of them is refused."""
    with standing_in(module):
        specimen = Specimen(CONFIGS[module])
        cuts = specimen.cuts((3,))
        prove_chain(specimen.blueprint, specimen.anatomy, cuts)
        (before, after) = cuts
        arrays = [name for name in after.crossings_in if not specimen.anatomy.leaves[name].is_number]
        assert arrays
        for name in arrays:
            # Keys travel with their values, and parts of a dict with each other: one without the other cannot be run.
            error = UnsupportedModel if ".cache." in name or ".kwargs." in name else ProofFailed
            with pytest.raises(error):
                prove_chain(specimen.blueprint, specimen.anatomy, without(name, before, after))


def without(name: str, before: StageCut, after: StageCut) -> list[StageCut]:
    """Two stages that do not pass this crossing."""
    kept = tuple(other for other in after.crossings_in if other != name)
    return [replace(before, crossings_out=kept), replace(after, crossings_in=kept)]
