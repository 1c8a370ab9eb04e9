"""Model modules unknown to us: cut by the same mechanism, or refused with a reason; never wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mlx.utils import tree_flatten

from shardhub.errors import ProofFailed, UnsupportedModel
from shardhub.model.build import spec_of
from shardhub.model.dissection import Dissection
from tests.architectures.matrix import (
    BATCHES,
    Specimen,
    boundaries,
    difference,
    random_model,
    reference,
    run,
    token_ids,
)
from tests.model.unseen import CONFIG, put_module

EXACT = {
    "plain": {},
    "outputs of the first half are added in the second": {
        "LOOP": """kept = []
        for i, (layer, c) in enumerate(zip(layers, cache)):
            h = layer(h if i < 3 else h + kept.pop(), mask, c)
            kept += [h] * (i < 3)"""
    },
    "a dict is handed on": {
        "OUT": '{"h": x, "attended": attended.sum(axis=1)}',
        "LOOP": """for layer, c in zip(layers, cache):
            out = layer(h, mask, c)
            h = out["h"] + out["attended"].mean(axis=-1, keepdims=True)""",
    },
    "a list in a dict argument grows by layer": {
        "BEFORE": 'shared["seen"] = [*shared.get("seen", ()), x]; x = x + 0.1 * sum(shared["seen"])',
        "LOOP": """shared = {}
        for layer, c in zip(layers, cache): h = layer(h, mask, c, shared)""",
    },
    "a dict argument gets a key late": {
        "BEFORE": """if self.index == 0 and cache.offset >= 12: shared["e"] = x * 0.5
        if self.index == 3 and "e" in shared: x = x + shared["e"]""",
        "LOOP": """shared = {}
        for layer, c in zip(layers, cache): h = layer(h, mask, c, shared)""",
    },
    "a number changes late": {
        "OUT": "(x, 2 if cache.offset - L >= 12 else 1)",
        "LOOP": """n = 1
        for layer, c in zip(layers, cache): h, n = layer(h * n, mask, c)""",
    },
    "layers run side by side in pairs": {
        "LOOP": """for i in range(0, 6, 2):
            h = layers[i](h, mask, cache[i]) + layers[i + 1](h, mask, cache[i + 1])"""
    },
    "positions scale the embedding": {
        "LOOP": """h = h * (1 + 0.01 * cache[0].offset)
        for layer, c in zip(layers, cache): h = layer(h, mask, c)"""
    },
}
REFUSED = {
    "the values decide": (
        {"BEFORE": "x = x * (1 + (x.sum().item() > 0))"},
        UnsupportedModel,
        "cannot be run on placeholders",
    ),
    "noise is added": ({"BEFORE": "x = x + mx.random.normal(x.shape)"}, UnsupportedModel, "differ between processes"),
    "layers talk past their outputs": (
        {"BEFORE": "Layer.first = x if self.index == 0 else Layer.first; x = x + Layer.first"},
        UnsupportedModel,
        "keeps state between steps",
    ),
    "a number passes by a variable of the module": (
        {"BEFORE": "Layer.at = cache.offset if self.index == 0 else Layer.at; x = x * (1 + 0.01 * Layer.at)"},
        UnsupportedModel,
        "keeps state between steps",
    ),
    "a later layer's cache is asked": (
        {"LOOP": "for layer, c in zip(layers, cache): h = layer(h * (1 + 0.01 * cache[3].offset), mask, c)"},
        ProofFailed,
        "would not compute what the whole model computes",
    ),
    "the layers run backwards": (
        {"LOOP": "for layer, c in zip(layers[::-1], cache): h = layer(h, mask, c)"},
        UnsupportedModel,
        "in order",
    ),
    "a layer is left out in single steps": (
        {"LOOP": "for layer, c in zip(layers[: 6 - (inputs.shape[1] == 1)], cache): h = layer(h, mask, c)"},
        UnsupportedModel,
        "in order",
    ),
    "the layers have another name": ({"LAYERS": "blocks"}, UnsupportedModel, "does not have a list of layers"),
    "a size changes late": (
        {
            "OUT": "(x, x[:, :, :16] if cache.offset - L >= 12 else x[:, :, :24])",
            "LOOP": """for i, (layer, c) in enumerate(zip(layers, cache)):
            h, e = layer(h if i == 0 else h + e.sum(-1, keepdims=True), mask, c)""",
        },
        ProofFailed,
        "after a cut",
    ),
    "a generator is handed on": (
        {"OUT": "iter([x])", "LOOP": "for layer, c in zip(layers, cache): h = next(layer(h, mask, c))"},
        UnsupportedModel,
        "cannot cross a cut",
    ),
}


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Puts a module with these differences from the plain one where mlx-lm's registry looks."""

    def put(changes: dict[str, str]) -> None:
        put_module(monkeypatch, changes)

    return put


@pytest.mark.parametrize("case", list(EXACT))
def test_unseen_module_is_exact_at_every_boundary(case: str, unseen: Callable[[dict[str, str]], None]) -> None:
    """Nothing in the mechanism knows an architecture: what these modules pass on is detected, proven, and exact."""
    unseen(EXACT[case])
    specimen = Specimen({**CONFIG, "case": case})  # chunks are looked for once for each configuration
    expected = {batch: reference(specimen, batch) for batch in BATCHES}
    for positions in boundaries(specimen):
        assert specimen.is_proven(positions), positions
        chain = specimen.chain(positions)
        for batch in BATCHES:
            assert difference(run(chain, token_ids(batch)), expected[batch]) == 0, (positions, batch)


@pytest.mark.parametrize("case", list(REFUSED))
def test_unseen_module_that_does_not_run_as_a_chain_is_refused(
    case: str, unseen: Callable[[dict[str, str]], None]
) -> None:
    """The refusal is an error of ours with a reason and a remedy; no stage is described."""
    changes, error, said = REFUSED[case]
    unseen(changes)
    headers = {name: spec_of(array) for name, array in tree_flatten(random_model(CONFIG).parameters())}
    with pytest.raises(error, match=said) as refused:
        Dissection(CONFIG, headers).stages([(0, 2), (2, 4), (4, 6)])
    assert refused.value.why
    assert refused.value.hint
    if error is UnsupportedModel:
        assert "These checks passed: its tensors match config.json" in refused.value.why
