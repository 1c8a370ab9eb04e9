"""What the model's graph says about each cut: what crosses, whether it grows, and the message of a refusal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shardhub.errors import UnsupportedModel
from shardhub.manifest import Crossing
from shardhub.model.cuts import cut_facts
from shardhub.model.dissection import Dissection
from shardhub.planning.borders import Borders, CutFacts
from tests import public, tiny
from tests.architectures.matrix import CONFIGS

CONTEXT = 8192


def dissection(config: dict[str, Any]) -> Dissection:
    return Dissection(config, public.headers(config))


def positions(cuts: tuple[CutFacts, ...]) -> list[int]:
    return [cut.position for cut in cuts]


def test_plain_model_can_be_cut_before_any_layer() -> None:
    """Only hidden states cross, in the model's dtype and as many bytes at every cut."""
    cuts = dissection(tiny.config("llama")).cuts()
    assert positions(cuts) == list(range(1, tiny.NUM_LAYERS))
    for cut in cuts:
        hidden = Crossing(name=f"layer.{cut.position - 1}", dtype="BF16", shape=("B", "L", 64))
        assert cut == CutFacts(position=cut.position, crossings=(hidden,))
        assert cut.extras == ()
        assert cut.bytes_per_token(CONTEXT) == 128


def test_cut_between_layers_that_share_keys_and_values_is_dearer() -> None:
    """hunyuan's odd cuts pass keys and values beside the hidden states; even ones do not."""
    cuts = dissection(CONFIGS["hunyuan"]).cuts()
    cheap = [cut.position for cut in cuts if not cut.extras]
    assert cheap == [2, 4, 6]
    assert not any(cut.grows for cut in cuts)
    borders = Borders(cuts=cuts, context=CONTEXT)
    assert all(borders.toll(position) > borders.toll(2) for position in (1, 3, 5, 7))


def test_cut_where_what_crosses_grows_is_known() -> None:
    """deepseek_v41 shares compressed keys of all positions from its first source layer on."""
    cuts = dissection(CONFIGS["deepseek_v41"]).cuts()
    borders = Borders(cuts=cuts, context=CONTEXT)
    assert borders.possible == list(range(1, 8))
    assert borders.steady == [1, 2]
    short, long = (cuts[3].bytes_per_token(context) for context in (1000, 2000))
    assert long > 1.9 * short


def test_cut_that_cannot_be_described_is_refused() -> None:
    """A crossing array without a description makes the cuts refused that it would cross, and only these."""
    known = dissection(tiny.config("llama"))
    anatomy = replace(known.anatomy, leaves={**known.anatomy.leaves, "layer.2": None})
    cuts = cut_facts(anatomy, known._needs)
    assert [cut.position for cut in cuts if cut.refusal is not None] == [3]
    assert "layer.2" in str(cuts[2].refusal)
    assert cuts[2].crossings == ()


def test_refusal_says_what_is_right_with_the_model() -> None:
    """The refusal of a model whose layers run twice says that its tensors are right and that it can be run whole."""
    with pytest.raises(UnsupportedModel) as caught:
        dissection(CONFIGS["nanbeige"])
    assert "its tensors match config.json" in caught.value.why
    assert "in order" not in caught.value.why
    assert caught.value.hint


def test_missing_tensor_beside_its_scales_is_named() -> None:
    """A missing quantised tensor is named in the message, whatever error upstream raises."""
    config = {**tiny.config("llama"), "quantization": {"group_size": 32, "bits": 4}}
    headers = public.headers(config)
    del headers["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(UnsupportedModel) as caught:
        Dissection(config, headers)
    assert "Missing: model.layers.1.mlp.up_proj.weight" in caught.value.why
    assert caught.value.hint


def test_tensors_that_disagree_are_refused_before_any_check_is_reported() -> None:
    """A missing tensor is named before anything is stated about the model."""
    config = tiny.config("llama")
    headers = public.headers(config)
    del headers["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(UnsupportedModel) as caught:
        Dissection(config, headers)
    assert "model.layers.1.mlp.up_proj.weight" in str(caught.value)
    assert "These checks passed" not in str(caught.value)
