"""Dissections that a run of the tests has made stand for later ones of the same model, except in tests of the proof."""

from __future__ import annotations

import pytest
from mlx.utils import tree_flatten

from shardhub.model import dissection
from shardhub.model.build import spec_of
from tests import known, tiny

RANGES = [(0, 2), (2, 6)]


class Computed(Exception):
    """Something was computed anew."""


def refuse(*_: object) -> None:
    raise Computed


def headers(config):
    return {name: spec_of(array) for name, array in tree_flatten(tiny.build(config).parameters())}


def test_what_a_dissection_decides_is_computed_once(tmp_path, monkeypatch) -> None:
    """Another one of the same config.json and headers has the same contents, stages and twin; another's is its own."""
    monkeypatch.setenv(known.FOLDER, str(tmp_path))
    config = tiny.config("llama")
    with known.remembering():
        first = dissection.Dissection(config, headers(config))
        stages, proven = first.stages(RANGES), first.prove(RANGES)
        for name in ("find_chunks", "prove_apart", "prove_chain", "run_twin"):
            monkeypatch.setattr(dissection, name, refuse)
        again = dissection.Dissection(config, headers(config))
        assert again.stages(RANGES) == stages
        assert again.prove(RANGES) == proven
        assert again.model() == first.model()
        with pytest.raises(Computed):
            again.prove([(0, 3), (3, 6)])
        other = {**config, "rope_theta": 20_000.0}
        with pytest.raises(Computed):
            dissection.Dissection(other, headers(other))
    with known.remembering(False), pytest.raises(Computed):
        dissection.Dissection(config, headers(config))
