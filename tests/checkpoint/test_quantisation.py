"""How a model may be quantised: wrong values and combinations are refused where they are given."""

from __future__ import annotations

from typing import Any

import pytest
from mlx_lm.convert import QUANT_RECIPES, configure_parser

from shardhub.checkpoint.quantisation import MODES, RECIPES, Quantisation, quantisation_text, quantised_name
from shardhub.errors import UsageError
from shardhub.manifest import SourceQuantization


def test_modes_and_recipes_are_upstreams() -> None:
    """The tables name what mlx_lm.convert offers."""
    (modes,) = [action.choices for action in configure_parser()._actions if action.dest == "q_mode"]
    assert list(MODES) == list(modes)
    assert list(RECIPES) == QUANT_RECIPES


def test_record_states_every_number() -> None:
    """Defaults are those of the mode, and a record gives the same quantisation again."""
    assert Quantisation().record == SourceQuantization(bits=4, group_size=64, mode="affine")
    assert Quantisation(mode="mxfp8").record == SourceQuantization(bits=8, group_size=32, mode="mxfp8")
    mixed = Quantisation(recipe="mixed_4_6", group_size=32)
    assert Quantisation.of(mixed.record).record == mixed.record
    assert quantisation_text(mixed.record) == "mlx-lm's recipe mixed_4_6, affine, in groups of 32"
    assert quantisation_text(Quantisation(bits=8).record) == "8 bits, affine, in groups of 64"


@pytest.mark.parametrize(
    ("quantisation", "name"),
    [
        (Quantisation(), "m-4bit"),
        (Quantisation(bits=8, group_size=32), "m-8bit-gs32"),
        (Quantisation(mode="mxfp4"), "m-mxfp4"),
        (Quantisation(recipe="mixed_4_6"), "m-mixed-4-6"),
    ],
)
def test_default_names_tell_of_the_quantisation(quantisation: Quantisation, name: str) -> None:
    """So that no quantised pipeline takes the place of the floats', or of one with other bits."""
    assert quantised_name("m", quantisation.record) == name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 7}, "`bits` is 7.* one of 2, 3, 4, 5, 6, 8"),
        ({"bits": True}, "of type bool"),
        ({"bits": 8, "mode": "mxfp4"}, "`bits` is 8.* only 4"),
        ({"group_size": 48}, "`group_size` is 48.* one of 32, 64, 128"),
        ({"group_size": 64, "mode": "nvfp4"}, "`group_size` is 64.* only 16"),
        ({"mode": "int4"}, "`mode` is 'int4'.* one of affine, mxfp4, nvfp4, mxfp8"),
        ({"recipe": "mixed_1_2"}, "`recipe` is 'mixed_1_2'.* one of mixed_2_6"),
        ({"recipe": "mixed_4_6", "mode": "mxfp4"}, "cannot be combined"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    """Each with the values that are allowed."""
    with pytest.raises(UsageError, match=f"(?s){message}"):
        Quantisation(**values)
