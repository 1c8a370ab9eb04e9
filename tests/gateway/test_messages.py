"""Wire messages for masks, targets and likelihoods: round trips."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardhub.parameters import SamplingParameters
from shardhub.protocol import HopKind, Lane, Mask, NextHop, OpenSession, Row, RowResult, Step, StepResult, TopTokens
from shardhub.wire import codec
from shardhub.wire import shardhub_pb2 as pb

ids = st.binary(min_size=16, max_size=16)
tokens = st.integers(0, 2**31 - 1)
logprobs = st.floats(width=32, max_value=0, allow_nan=False)
tops = st.lists(st.tuples(tokens, logprobs), max_size=3).map(
    lambda pairs: TopTokens(ids=tuple(p[0] for p in pairs), logprobs=tuple(p[1] for p in pairs))
)
masks = st.builds(
    Mask, session=ids, epoch=st.integers(0, 2**63), position=st.integers(0, 2**31), allowed=st.binary(max_size=64)
)


@given(st.lists(masks, max_size=4))
def test_masks_come_out_as_they_went_in(sent_masks) -> None:
    """A mask keeps its session, its draw and its bits."""
    sent = pb.LinkMessage.FromString(codec.masks_message(sent_masks).SerializeToString())
    assert codec.masks_value(sent.masks) == sent_masks


@given(st.lists(tokens, max_size=5), st.booleans())
def test_rows_carry_targets(targets, masked) -> None:
    """A row keeps its targets, and whether its draw waits for a mask."""
    row = Row(session=b"s" * 16, epoch=1, position=4, sample=True, masked=masked, targets=tuple(targets))
    step = Step(rows=(row,), length=1, ids=b"\0" * 4, crossings={}, deadline=0.0, lane=Lane.PREFILL)
    assert codec.step_value(codec.step_message(step, now=0.0).step, Lane.PREFILL, now=0.0).rows == (row,)


@given(st.lists(tops, max_size=3), st.lists(logprobs, max_size=3), st.lists(tops, max_size=3))
def test_results_carry_likelihoods(top, target_logprobs, target_top) -> None:
    """Log probabilities come back as the same floats."""
    row = RowResult(
        session=b"s" * 16,
        epoch=1,
        position=4,
        top=tuple(top),
        target_logprobs=tuple(target_logprobs),
        target_top=tuple(target_top),
    )
    result = StepResult(rows=(row,), lane=Lane.DECODE)
    sent = pb.LinkMessage.FromString(codec.result_message(result, b"boot").SerializeToString())
    assert codec.result_value(sent.result, Lane.DECODE) == result


@given(
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.dictionaries(tokens, st.floats(-100, 100), max_size=5),
    st.integers(0, 20),
    st.integers(0, 2**31 - 1),
)
def test_an_open_call_carries_what_draws_depend_on(presence, frequency, biases, top_logprobs, start) -> None:
    """Penalties, biases and the beginning of the answer come back."""
    parameters = SamplingParameters(
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=tuple(sorted(biases.items())),
        top_logprobs=top_logprobs,
        answer_start=start,
    )
    call = OpenSession(
        head=b"h" * 16,
        session=b"s" * 16,
        epoch=1,
        context=9,
        parameters=parameters,
        next_hop=NextHop(kind=HopKind.END),
    )
    assert codec.open_value(codec.open_message(call)).parameters == parameters
