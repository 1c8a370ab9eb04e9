"""A small model of the same configuration, compared by numbers, tells right stages and batches from wrong ones."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from mlx.utils import tree_flatten

from shardhub.model.anatomy import examine
from shardhub.model.build import Blueprint, spec_of
from shardhub.model.miniature import make_miniature, miniature_widths
from shardhub.model.probing import find_chunks
from shardhub.model.trial import Trial
from shardhub.model.twin import Twin, run_twin
from tests import public
from tests.architectures import matrix, widths
from tests.architectures.standins import standing_in
from tests.model.unseen import CONFIG, put_module
from tests.selection import variants


def opened(config: dict[str, Any]) -> Blueprint:
    model = matrix.random_model(config)
    return Blueprint(config, {name: spec_of(array) for name, array in tree_flatten(model.parameters())})


def twin(config: dict[str, Any], cuts: tuple[int, ...] = (2, 4)) -> Twin:
    blueprint = opened(config)
    return run_twin(blueprint, find_chunks(blueprint), cuts)


def test_small_vocabulary_is_not_read_past_its_last_row() -> None:
    """Ids that a trial invents stay below the vocabulary, as memory behind its last row is undefined."""
    config = {**matrix.CONFIGS["llama"], "vocab_size": 7}
    blueprint = opened(config)
    assert blueprint.num_trial_ids == 7
    trial = Trial(blueprint, examine(blueprint), 0, ())
    ids = trial.chunk(400, 400).ids
    assert (ids.min().item(), ids.max().item()) == (0, 6)
    result = twin(config, (2,))
    assert (result.not_run, result.finding, result.batch_refusal) == ("", None, None)


@pytest.mark.parametrize("module", variants(["gemma3_text", "qwen3_next", "kimi_k3", "gemma4_text"]))
def test_healthy_model_is_equal_alone_and_side_by_side(module: str) -> None:
    """Windows, recurrent states, shared K and V, sparse attention: stages and whole agree beyond every length."""
    result = twin(matrix.CONFIGS[module])
    assert not result.not_run
    assert result.finding is None
    assert result.batch_refusal is None
    assert result.num_positions > 20


@pytest.mark.parametrize(
    ("module", "change"),
    variants(
        [
            ("afm7", {}),
            ("minimax_m3_vl", {"sparse_block_size": 4, "sparse_topk_blocks": 4}),
            ("gpt_bigcode", {}),
            ("deepseek_v41", {}),
        ],
        num_default=3,
    ),
)
def test_wrong_batches_of_upstream_are_refused(module: str, change: dict[str, int]) -> None:
    """Batches that are wrong at once or past a length, that fail, or lack batched caches are refused."""
    config = copy.deepcopy(matrix.CONFIGS[module])
    if change:
        config["text_config"]["sparse_attention_config"].update(change)
    result = twin(config)
    assert result.finding is None
    assert result.batch_refusal is not None


@pytest.mark.parametrize("row", [1, 3, 4])
def test_batch_whose_later_rows_differ_is_refused(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows are run, not two, so that a fault in later rows shows."""
    put_module(
        monkeypatch, {"BEFORE": f"x = mx.concatenate([x[:{row}], x[{row}:] * 1.5]) if x.shape[0] > {row} else x"}
    )
    result = twin(CONFIG)
    assert result.finding is None
    assert result.batch_refusal is not None
    assert "off by" in result.batch_refusal


def test_stages_that_fail_where_the_whole_runs_are_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that fail where the whole model runs are reported as wrong, not as a model that cannot be tried."""
    top = "from tests.inexact import is_run\ndef fail(): raise ValueError('broadcast')\n"
    is_stage = "type(self).__name__.startswith('Tapped') and x.shape[1] == 9 and is_run(x)"
    put_module(monkeypatch, {"BEFORE": f"if {is_stage}: fail()"}, top=top)
    result = twin(CONFIG)
    assert result.not_run == ""
    assert "fail where the whole model does not: ValueError: broadcast" in (result.finding or "")


def test_length_of_the_code_itself_is_not_said_to_be_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number in the code stays as it is; the report says how far the run went, single steps included."""
    put_module(monkeypatch, {"OUT": "x * (2 if k.shape[2] > 3000 else 1)"})
    result = twin(CONFIG)
    assert result.finding is None
    assert result.length_divisor == 1
    assert result.is_cut_short
    assert 14 <= result.num_positions < 3000


def test_long_lengths_are_divided_and_few_layers_show_all_kinds() -> None:
    """A window of 1,024 over 62 layers of two kinds becomes one of 128 over ten, cut between the same kinds."""
    config = public.config("gemma-3-27b-it")
    miniature = make_miniature(Blueprint(config, public.headers(config)), (1024,), (20, 41))
    assert miniature.length_divisor == 8
    text = miniature.blueprint.config["text_config"]
    assert text["sliding_window"] == 128
    assert text["num_hidden_layers"] < 20
    assert all(0 < cut < text["num_hidden_layers"] for cut in miniature.cuts)
    assert sum(spec.size_bytes for spec in miniature.blueprint.tensors.values()) < 64 << 20


@pytest.mark.parametrize("name", ["DeepSeek-R1-4bit", "Falcon-H1-34B-Instruct", "Nemotron-H-8B-Base-8K", "phi-4"])
def test_public_model_has_a_twin(name: str) -> None:
    """A small model is made of quantised and hybrid models, and of those whose widths depend on each other."""
    config = public.config(name)
    miniature = make_miniature(Blueprint(config, public.headers(config)), (64,), (3,))
    assert sum(spec.size_bytes for spec in miniature.blueprint.tensors.values()) < 512 << 20
    assert "quantization" not in miniature.blueprint.config


@pytest.mark.parametrize("module", variants(["llama", "deepseek_v3", "falcon_h1", "gemma3", "cohere2", "rwkv7"]))
def test_table_of_widths_is_what_upstream_shows(module: str) -> None:
    """The table in the package is the one its script makes."""
    with standing_in(module):
        assert dict(miniature_widths()[module]) == widths.widths(module)


def test_every_module_has_widths() -> None:
    """Every architecture has a row in the table of widths."""
    assert json.loads(widths.TABLE.read_text()).keys() == matrix.CONFIGS.keys()
