"""Predictions: the documented formulas, by hand, and how they are compared with measurements."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from shardhub.errors import PlanError
from shardhub.placing.cluster import Cluster, Link, Machine
from shardhub.placing.model import ModelFacts
from shardhub.placing.prediction import Prediction, compare, predict
from shardhub.placing.wishes import Wishes
from shardhub.planning.cutting import cut_evenly
from shardhub.planning.plan import LayerCosts, ModelCosts, StagePlan
from tests.clusters import GB, machine, prediction_of, uniform

CLUSTER = Cluster(
    machines=(replace(machine("a", 64, 100), step_s=0.002), machine("b", 64, 50)),
    links={
        ("a", "b"): Link(round_trip_s=0.004, bytes_per_s=1e6),
        ("a", "head"): Link(round_trip_s=0.006, bytes_per_s=4e3),
    },
    default_link=Link(round_trip_s=0.010, bytes_per_s=1e9),
)
MODEL = uniform(4, GB, kv=1000, ends=2 * GB, hidden=498)
RANGES = (("a", 0, 3), ("b", 3, 4))


def test_time_a_token_is_reading_plus_hops() -> None:
    """A token takes reading, a fixed time a step, and for each hop half a round trip and the transfer."""
    prediction = prediction_of(MODEL, CLUSTER, Wishes(context=8192, head_machine="head"), RANGES)
    assert prediction.stage_s == pytest.approx((3 / 100 + 0.002, (1 + 2) / 50))
    # 498 numbers of two bytes and an id of four over 1 MB/s; an id over 4 kB/s; an unmeasured link.
    assert prediction.hop_s == pytest.approx((0.003 + 0.001, 0.002 + 0.001, 0.005))
    assert prediction.token_s == pytest.approx(0.032 + 0.06 + 0.012)
    assert prediction.tokens_per_s == pytest.approx(1 / 0.104)


def test_cached_positions_are_read_with_each_token() -> None:
    """A step in the middle of a session also reads its KV cache, once for each session of a microbatch."""
    asked = Wishes(context=8192, kv_positions=5000, width=4)
    prediction = prediction_of(MODEL, CLUSTER, asked, RANGES)
    assert prediction.stage_s[1] == pytest.approx((3 + 0.005) / 50)
    assert prediction.period_s == pytest.approx((3 + 4 * 0.005) / 50)


def test_slowest_stage_or_link_limits_the_throughput() -> None:
    """Many sessions get a microbatch's tokens once a period; few of them wait for their own rounds."""
    prediction = Prediction(stage_s=(0.03, 0.05), hop_s=(0.01, 0.01, 0.01), width=4, round_s=0.12, period_s=0.05)
    assert prediction.most_tokens_per_s == pytest.approx(4 / 0.05)
    assert prediction.busy_sessions == 12
    assert prediction.throughput(1) == pytest.approx(1 / 0.12)
    assert prediction.throughput(8) == pytest.approx(8 / 0.12)
    assert prediction.throughput(12) == pytest.approx(12 / 0.15)
    assert prediction.throughput(120) == pytest.approx(prediction.most_tokens_per_s)
    slow_link = replace(CLUSTER, links={("a", "b"): Link(round_trip_s=0, bytes_per_s=4e3)})
    # A microbatch of two sends 2,000 bytes.
    assert prediction_of(MODEL, slow_link, Wishes(context=1, width=2), RANGES).period_s == pytest.approx(0.5)


def test_a_step_that_takes_no_time_is_infinitely_fast() -> None:
    """Nothing is divided by zero."""
    prediction = Prediction(stage_s=(0.0,), hop_s=(0.0, 0.0), width=1, round_s=0.0, period_s=0.0)
    assert prediction.tokens_per_s == prediction.most_tokens_per_s == prediction.throughput(3) == math.inf
    assert prediction.busy_sessions == 1


def test_prediction_is_compared_with_a_measurement() -> None:
    """The error is the share by which the measured speed is off, and the stage that differs most is named."""
    prediction = Prediction(stage_s=(0.03, 0.05), hop_s=(0.01, 0.0, 0.01), width=1, round_s=0.1, period_s=0.05)
    comparison = compare(prediction, token_s=0.125, stage_s=(0.032, 0.065))
    assert comparison.error == pytest.approx(-0.2)
    assert comparison.worst_stage == 1
    assert compare(prediction, token_s=0.1).worst_stage is None
    with pytest.raises(PlanError, match="cannot take 0"):
        compare(prediction, token_s=0)
    with pytest.raises(PlanError, match="1 stages were measured, and 2 predicted"):
        compare(prediction, token_s=0.1, stage_s=[0.1])


@pytest.mark.parametrize(
    ("num_stages", "measured_s"), [(1, 0.1905 + 0.0025), (2, 0.1939 + 0.004), (4, 0.1965 + 0.0069)]
)
def test_published_figures_are_predicted(num_stages: int, measured_s: float) -> None:
    """With the rate of one stage, the published time a token of SmolLM2 on 1, 2 and 4 stages is predicted within 6 %.

    Source: docs/benchmarks.md, "Where the time between tokens goes", and the round trip of a step there.
    """
    layer = LayerCosts(size_bytes=14_160_384, read_bytes=14_160_384)
    table = 49_152 * 576 * 4
    model = ModelFacts(
        costs=ModelCosts(
            layers=(layer,) * 30, embedding_bytes=table, head_bytes=table, tied_bytes=table, hidden_size=576
        )
    )
    rate = (30 * layer.read_bytes + table) / 0.1905
    machines = tuple(Machine(name=name, budget_bytes=GB, read_bytes_per_s=rate) for name in "abcd"[:num_stages])
    cluster = Cluster(machines=machines, default_link=Link(round_trip_s=0.0005, bytes_per_s=1e9))
    stages = [
        StagePlan(start=stage.start, stop=stage.stop, machine=name)
        for name, stage in zip("abcd", cut_evenly(model.costs, num_stages).stages, strict=False)
    ]
    comparison = compare(predict(model, cluster, Wishes(context=8192), stages), token_s=measured_s)
    assert -0.06 < comparison.error < 0


def test_stages_without_a_machine_are_refused() -> None:
    """A plan that was not made for these machines cannot be predicted."""
    with pytest.raises(PlanError, match="no machine ''"):
        predict(MODEL, CLUSTER, Wishes(context=1), [StagePlan(start=0, stop=4)])
