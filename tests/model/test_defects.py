"""Model modules with an injected fault: refused, or ended before a wrong token; healthy ones are exact."""

from __future__ import annotations

import copy
import os
import random
from pathlib import Path

import pytest

from shardhub.model import dissection
from shardhub.model.probing import Probing
from tests.architectures.matrix import CONFIGS
from tests.model.defects import EFFECTS, TRIGGERS, Defect, draw, is_right, tried
from tests.model.judge import Judged, Unchanged, Verdict, judge

# How many more defects are drawn, and from which seed.
COUNT = int(os.environ.get("SHARDHUB_DEFECTS", "3"))
SEED = int(os.environ.get("SHARDHUB_DEFECTS_SEED", "11"))
# What a forward keeps or asks aside is refused whatever the trigger is.
ASIDE = {
    "an array in a class": "Layer.first",
    "a number in a class": "NOTE",
    "an array in a default argument": "defaults",
    "an array in the arguments": "args.note",
    "an array on a cache": ".note",
    "steps are counted in the tail": "count",
    "the first layer counts, the last uses it": "COUNT",
    "the time": "differ between processes|never reached",
    "a deadline": "differ between processes|never reached",
    "chance": "differ between processes|never reached",
    "an identity of an object": "builtins.id",
}
HEALTHY = (
    "a dict argument gets a key",
    "an output of the first layer in the head",
    "windows in turns",
)


def right(defect: Defect, folder: Path | None = None) -> Judged:
    """Judge a defect, and show its source if the verdict is wrong."""
    judged = tried(defect, folder)
    assert is_right(defect, judged), f"{defect}: {judged.verdict.value}: {judged.why}\n{defect.text}"
    return judged


@pytest.mark.parametrize("effect", list(ASIDE))
def test_what_is_kept_aside_is_refused_though_no_probe_comes_to_its_use(effect: str, tmp_path: Path) -> None:
    """Keeping or reading state shows in every step, even if its value is used in a single one."""
    rng = random.Random(effect)
    own = EFFECTS[effect].own
    trigger = None if own else "by a product"
    judged = right(draw(rng, effect=effect, trigger=trigger), tmp_path if rng.random() < 0.5 else None)
    assert judged.verdict is Verdict.REFUSED
    assert any(said in judged.why for said in ASIDE[effect].split("|"))


@pytest.mark.parametrize("effect", HEALTHY)
def test_what_comes_later_is_split_and_exact(effect: str) -> None:
    """An array that a layer passes on only from some position on is known, described, and exact before and after."""
    rng = random.Random(effect)
    triggers = [
        name for name in TRIGGERS if name in ("compared", "in arithmetic", "by a helper", "by min", "in a table")
    ]
    right(draw(rng, effect=effect, trigger=None if EFFECTS[effect].own else rng.choice(triggers)))


@pytest.mark.parametrize("number", range(COUNT))
def test_defects_drawn_at_random_are_never_silently_wrong(number: int, tmp_path: Path) -> None:
    """Whatever the effect and its condition, no chain of random defects gives a wrong result silently."""
    rng = random.Random(SEED * 1000 + number)
    right(draw(rng), tmp_path if rng.random() < 0.5 else None)


@pytest.fixture
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that stops after the tenth position."""
    short = Probing(chunks=(3, 5, 1, 1), lengths=(), num_conditions=0, num_positional=0, unreached=())
    monkeypatch.setattr(dissection, "find_chunks", lambda _: short)


@pytest.mark.usefixtures("short_probe")
@pytest.mark.parametrize("positions", [(2,), (1, 3)])
def test_probe_cut_short_ends_the_session_where_an_array_comes_up(positions: tuple[int, ...]) -> None:
    """The session is exact up to position 36 and ends at 37, where a layer passes on an unproven array."""
    defect = Defect("none becomes an array", "compared", {"P": 37, "M": 5, "R": 1, "W": 3}, positions, 5)
    judged = tried(defect)
    assert judged.verdict is Verdict.ENDED
    assert "position 37" in judged.why


@pytest.mark.usefixtures("short_probe")
@pytest.mark.parametrize(("schedule", "at"), [((126, *[1] * 3), 127)])
def test_probe_cut_short_ends_deepseek_v41_where_its_positions_are_compressed(
    schedule: tuple[int, ...], at: int
) -> None:
    """The session ends where a group of 128 positions closes, since an unproven array crosses the cut there."""
    config = copy.deepcopy(CONFIGS["deepseek_v41"])
    config |= {"compress_ratios": [0, 0] + [128] * 6, "sliding_window": 128, "max_position_embeddings": 4096}
    judged = judge(Unchanged(), config, (4,), [schedule])
    assert judged.verdict is Verdict.ENDED
    assert f"position {at}" in judged.why
