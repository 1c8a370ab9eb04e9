"""Our sampler against mlx-lm's at fixed keys, and what a draw depends on."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx_lm import sample_utils

from shardhub.errors import UsageError
from shardhub.model.sampling import draw_key, sample, sample_greedy
from shardhub.parameters import SamplingParameters

VOCAB = 1000


def logits_of(seed: int) -> mx.array:
    return 4 * mx.random.normal((VOCAB,), key=mx.random.key(seed))


def reference(logits: mx.array, parameters: SamplingParameters, key: mx.array) -> mx.array:
    """mlx_lm's filters in mlx_lm's order, drawn with our key."""
    logprobs = (logits - mx.logsumexp(logits, keepdims=True))[None]
    if parameters.top_p < 1:
        logprobs = sample_utils.apply_top_p(logprobs, parameters.top_p)
    if parameters.min_p > 0:
        logprobs = sample_utils.apply_min_p(logprobs, parameters.min_p)
    if parameters.top_k > 0:
        logprobs = sample_utils.apply_top_k(logprobs, parameters.top_k)
    return mx.random.categorical(logprobs[0] * (1 / parameters.temperature), key=key)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_p": 0.9},
        {"top_p": 0.1},
        {"top_k": 1},
        {"top_k": 40},
        {"min_p": 0.05},
        {"top_p": 0.8, "min_p": 0.01, "top_k": 20},
    ],
)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_draws_equal_mlx_lm(options, temperature) -> None:
    """With the same key and parameters both samplers draw the same token."""
    parameters = SamplingParameters(temperature=temperature, **options)
    for seed in range(8):
        logits, key = logits_of(seed), draw_key(seed, 0, 17)
        token, _ = sample(logits, [], parameters, None, key)
        assert token.item() == reference(logits, parameters, key).item()


def test_greedy_takes_what_mlx_lm_takes() -> None:
    """Temperature 0 takes the argmax of the log probabilities, and reports its log probability."""
    logits = logits_of(1)
    token, logprobs = sample(logits, [], SamplingParameters(), None, draw_key(0, 0, 0))
    expected = logits - mx.logsumexp(logits, keepdims=True)
    assert token.item() == sample_utils.greedy_sampler(expected).item()
    assert mx.array_equal(logprobs, expected)


@pytest.mark.parametrize("penalty", [1.3, 0.5])
def test_repetition_penalty_equals_mlx_lm(penalty) -> None:
    """Only recent tokens are penalised, each once, whatever the sign of its logit."""
    history = [int(v) for v in mx.random.randint(0, VOCAB, (50,), key=mx.random.key(5)).tolist()]
    history += history[-3:]
    parameters = SamplingParameters(repetition_penalty=penalty)
    _, logprobs = sample(logits_of(2), history, parameters, None, draw_key(0, 0, 0))
    processor = sample_utils.make_repetition_penalty(penalty, 20)
    expected = processor(mx.array(history), logits_of(2)[None])[0]
    assert mx.array_equal(logprobs, expected - mx.logsumexp(expected, keepdims=True))


def test_a_mask_forbids_tokens() -> None:
    """A token whose bit is off is never drawn, however likely."""
    logits = logits_of(3)
    best = int(mx.argmax(logits).item())
    mask = mx.arange(VOCAB) != best
    for position in range(20):
        token, _ = sample(logits, [], SamplingParameters(temperature=0.5), mask, draw_key(0, 0, position))
        assert token.item() != best


def test_draw_depends_on_seed_choice_and_position_alone() -> None:
    """The sampling key is a function of seed, choice and position."""
    keys = {tuple(draw_key(s, c, p).tolist()) for s in (0, 1, 2**63 - 1) for c in (0, 1) for p in (0, 1, 2)}
    assert len(keys) == 18
    assert draw_key(7, 1, 3).tolist() == draw_key(7, 1, 3).tolist()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("seed", 2**70),
        ("choice", -1),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(field, value) -> None:
    """Each parameter has its own message when it is out of range."""
    with pytest.raises(UsageError, match=field):
        SamplingParameters(**{field: value})


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_greedy_rows_together_are_bit_for_bit_those_alone(dtype) -> None:
    """Each row of a batch has the token and log probability that it has alone, also where two tokens are likeliest."""
    logits = mx.random.normal((7, 49_152), key=mx.random.key(3)).astype(dtype) * 4
    logits[6, 100] = logits[6, 40_000] = 60.0
    tokens, logprobs, are_numbers = sample_greedy(logits)
    assert all(are_numbers.tolist())
    for row in range(7):
        token, expected = sample(logits[row], [], SamplingParameters(), None, draw_key(0, 0, row))
        assert tokens[row].item() == token.item()
        assert logprobs[row].item() == expected[token].item()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_greedy_sampling_reports_rows_with_nan(broken) -> None:
    """One NaN logit is enough; minus infinity of a forbidden token is a number."""
    logits = mx.zeros((3, VOCAB))
    logits[1, 17] = broken
    logits[2, 17] = float("-inf")
    assert sample_greedy(logits)[2].tolist() == [True, False, True]
    assert sample_greedy(mx.full((1, 4), float("-inf")))[2].tolist() == [False]


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.5},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"logit_bias": ((3, 1.0),)},
        {"top_logprobs": 2},
    ],
)
def test_what_asks_for_more_is_not_plain_greedy(changes) -> None:
    """Parameters that change the logits, or ask for more than the token, are handled row by row."""
    assert SamplingParameters().is_plain_greedy
    assert not SamplingParameters(**changes).is_plain_greedy
