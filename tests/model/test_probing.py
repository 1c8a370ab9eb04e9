"""The chunks of a proof reach every branch of a forward, wherever the number in its condition comes from."""

from __future__ import annotations

import copy
from itertools import accumulate
from typing import Any

import pytest
from mlx.utils import tree_flatten

from shardhub.errors import UnsupportedModel
from shardhub.model.build import Blueprint, spec_of
from shardhub.model.dissection import Dissection
from shardhub.model.probing import Probing, find_chunks
from tests.architectures import matrix
from tests.model.unseen import CONFIG, put_module

AT = "cache.offset"


def probe(config: dict[str, Any]) -> Probing:
    model = matrix.random_model(config)
    return find_chunks(Blueprint(config, {name: spec_of(array) for name, array in tree_flatten(model.parameters())}))


def reached(probing: Probing) -> list[tuple[int, int]]:
    """Half-open ranges of positions that the chunks cover."""
    ends = list(accumulate(probing.chunks))
    return list(zip([0, *ends], ends, strict=False))


@pytest.mark.parametrize(
    "condition",
    [
        f"{AT} >= 37",
        f"37 <= {AT} < 41",
        f"({AT} + 3) // 40 > 0",
        f"{AT} % 37 == 36",
        f"min({AT}, 37) == 37",
        f"([0] * 37 + [1])[{AT} if {AT} < 37 else 37]",
        f"(lambda at: at > 37)({AT})",
        f"mask is None and {AT} == 37",
    ],
)
def test_position_that_the_code_speaks_of_is_probed(condition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch is taken by some chunk, even if its number is written only in the code."""
    put_module(monkeypatch, {"BEFORE": f"x = x * (2 if ({condition}) else 1)"})
    probing = probe(CONFIG)
    assert any(stop > 37 for _, stop in reached(probing)), probing.chunks
    assert not [each for each in probing.unreached if each.is_open]


def test_two_groups_of_a_ratio_are_probed() -> None:
    """deepseek_v41 compresses every 128 positions: a step that closes a group, and one behind it, are run."""
    config = copy.deepcopy(matrix.CONFIGS["deepseek_v41"])
    config["compress_ratios"] = [0, 0] + [128] * 6
    config["sliding_window"] = 128
    assert reached(probe(config))[-1][1] > 256


def test_window_is_met_by_single_ids_and_passed_by_chunks() -> None:
    """A sliding window has separate code for single ids and for chunks; both are among the chunks."""
    probing = probe(matrix.CONFIGS["gemma3_text"])
    window = matrix.CONFIGS["gemma3_text"]["sliding_window"]
    beyond = [stop - start for start, stop in reached(probing) if start >= window]
    assert 1 in beyond
    assert any(length > 1 for length in beyond)


def test_plain_model_takes_few_chunks() -> None:
    """Where positions decide nothing, few chunks are run."""
    assert len(probe(matrix.CONFIGS["qwen2"]).chunks) <= 4


def test_condition_that_no_step_turns_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A condition whose operand approaches its limit but never reaches it leaves a branch unproven, and is refused."""
    put_module(monkeypatch, {"BEFORE": "x = x * (2 if cache.offset * 31 % 97 > 98 else 1)"})
    model = matrix.random_model(CONFIG)
    headers = {name: spec_of(array) for name, array in tree_flatten(model.parameters())}
    with pytest.raises(UnsupportedModel, match="never reached"):
        Dissection(CONFIG, headers)
