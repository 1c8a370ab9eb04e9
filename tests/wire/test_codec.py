"""Wire messages: round trips, golden bytes, and what is refused before an array exists."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardhub.errors import OUTCOMES, NodeFailure, ShardhubError, WireError
from shardhub.parameters import MAX_SEED, SamplingParameters
from shardhub.protocol import (
    HopKind,
    Lane,
    NextHop,
    OpenSession,
    Row,
    RowResult,
    StageTime,
    Step,
    StepFailure,
    StepResult,
)
from shardhub.tensors import DTYPE_SIZES, RawTensor
from shardhub.wire import codec
from shardhub.wire import shardhub_pb2 as pb

# Seconds on the sender's clock.
NOW = 1000.0
DTYPES = [name for name in DTYPE_SIZES if not name.startswith("F8")]  # 8-bit floats never cross
ids = st.binary(min_size=16, max_size=16)
texts = st.text(max_size=40)
rows = st.builds(
    Row,
    session=ids,
    epoch=st.integers(0, 2**63),
    position=st.integers(0, 2**31),
    sample=st.booleans(),
    discard=st.integers(0, 64),
)
seconds = st.integers(0, 2**31).map(lambda us: us / 1e6)
stage_times = st.lists(st.builds(StageTime, wait_s=seconds, compute_s=seconds), max_size=4).map(tuple)


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    size = DTYPE_SIZES[dtype]
    for dimension in shape:
        size *= dimension
    return RawTensor(dtype=dtype, shape=shape, data=draw(st.binary(min_size=size, max_size=size)))


@st.composite
def steps(draw):
    chosen = tuple(draw(st.lists(rows, min_size=1, max_size=3)))
    length = draw(st.integers(1, 4))
    size = 4 * length * len(chosen)
    return Step(
        rows=chosen,
        length=length,
        ids=draw(st.binary(min_size=size, max_size=size)),
        crossings=draw(st.dictionaries(st.text(min_size=1, max_size=20), tensors(), max_size=3)),
        deadline=NOW + 60,
        lane=draw(st.sampled_from(Lane)),
    )


@given(steps())
def test_steps_come_out_as_they_went_in(step) -> None:
    """All fields come back unchanged, except the deadline, which is sent as the remaining time."""
    sent = pb.LinkMessage.FromString(codec.step_message(step, now=NOW).SerializeToString())
    received = codec.step_value(sent.step, step.lane, now=NOW + 5.0)
    assert received.deadline == step.deadline + 5.0
    assert (received.verify, received.times) == (step.verify, step.times)
    assert (received.rows, received.length, received.ids, dict(received.crossings), received.lane) == (
        step.rows,
        step.length,
        step.ids,
        dict(step.crossings),
        step.lane,
    )


row_results = st.builds(
    RowResult,
    session=ids,
    epoch=st.integers(0, 2**63),
    position=st.integers(0, 2**31),
    tokens=st.lists(st.integers(0, 2**31), max_size=4).map(tuple),
    logprobs=st.lists(st.floats(width=32, allow_nan=False), max_size=4).map(tuple),
)


@given(st.lists(row_results, max_size=4), st.sampled_from(Lane), stage_times)
def test_results_come_out_as_they_went_in(rows, lane, times) -> None:
    """A row without a token comes back as such, with every stage's time."""
    result = StepResult(rows=tuple(rows), lane=lane, times=times)
    sent = pb.LinkMessage.FromString(codec.result_message(result, b"boot").SerializeToString())
    assert codec.result_value(sent.result, lane) == result


@given(st.sampled_from(list(OUTCOMES)), texts, texts, texts)
def test_failures_keep_class_and_texts(kind, what, why, hint) -> None:
    """Every error of the tree is rebuilt at the head."""
    failure = StepFailure(
        rows=(Row(session=b"s" * 16, epoch=1, position=2, sample=True),), error=kind(what, why=why, hint=hint)
    )
    received = codec.failure_value(codec.failure_message(failure).failure)
    assert type(received.error) is kind
    assert (received.error.what, received.error.why, received.error.hint) == (what, why, hint)
    assert received.rows == failure.rows


def test_unknown_error_becomes_a_node_failure() -> None:
    """An unknown error class, as from a newer node, becomes a node failure."""
    received = codec.failure_value(pb.Failure(error="SomethingNew", what="x"))
    assert type(received.error) is NodeFailure
    assert isinstance(received.error, ShardhubError)


parameters = st.builds(
    SamplingParameters,
    temperature=st.floats(0, 100),
    top_p=st.floats(0.001, 1),
    top_k=st.integers(0, 1000),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.01, 100),
    repetition_context=st.integers(1, 1000),
    seed=st.integers(0, MAX_SEED),
    choice=st.integers(0, 100),
)


@given(ids, ids, st.integers(1, 2**40), parameters, st.sampled_from(HopKind), st.none() | st.integers(0, 2**31))
def test_open_calls_come_out_as_they_went_in(head, session, epoch, sampling, kind, position) -> None:
    """Sampling parameters come back to the last bit, since the draw depends on them."""
    call = OpenSession(
        head=head,
        session=session,
        epoch=epoch,
        context=100,
        parameters=sampling,
        next_hop=NextHop(kind=kind, address="h:1" if kind is HopKind.DIAL else ""),
        position=position,
    )
    assert codec.open_value(pb.OpenRequest.FromString(codec.open_message(call).SerializeToString())) == call


def test_step_golden_bytes() -> None:
    """The bytes of a small step are fixed: another result is a change of the wire format."""
    message = pb.LinkMessage(
        step=pb.Step(
            rows=[pb.Row(session=b"0123456789abcdef", epoch=3, position=5, sample=True)],
            length=1,
            ids=(7).to_bytes(4, "little"),
            crossings=[pb.Tensor(name="layer.1", dtype="BF16", shape=[1, 1, 2], data=b"\x01\x02\x03\x04")],
            timeout_ms=1000,
        )
    )
    assert message.SerializeToString().hex() == (
        "123d0a180a103031323334353637383961626364656610031805200110011a040700000022160a07"
        "6c617965722e3110071a0301010222040102030428e807"
    )


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (pb.Tensor(name="x", dtype="F32", shape=[2], data=b"1234"), "4 bytes"),
        (pb.Tensor(name="x", dtype="F32", shape=[2**31, 2**31, 2**31], data=b""), "takes"),
        (pb.Tensor(name="x", dtype="DTYPE_UNSPECIFIED", shape=[], data=b""), "dtype"),
        (pb.Tensor(name="x", dtype="F32", shape=[1] * 100, data=b"1234"), "100 dimensions"),
    ],
)
def test_tensors_that_lie_are_refused(tensor, text) -> None:
    """Shape, dtype and bytes must agree before an array is made of them."""
    row = pb.Row(session=b"s" * 16, epoch=1)
    with pytest.raises(WireError, match=text):
        codec.step_value(pb.Step(rows=[row], length=1, ids=b"0000", crossings=[tensor]), Lane.DECODE, now=NOW)


def test_unknown_dtype_number_is_refused() -> None:
    """A dtype number of a later protocol is refused."""
    tensor = pb.Tensor.FromString(b"\x10\x63")  # dtype = 99
    step = pb.Step(rows=[pb.Row()], crossings=[tensor])
    with pytest.raises(WireError, match="dtype 99"):
        codec.step_value(step, Lane.DECODE, now=NOW)


def test_crossing_twice_and_rows_without_number_are_refused() -> None:
    """Crossings with one name, and rows whose number is out of bounds, are refused."""
    tensor = pb.Tensor(name="x", dtype="U8", shape=[0])
    with pytest.raises(WireError, match="twice"):
        codec.step_value(pb.Step(rows=[pb.Row()], crossings=[tensor, tensor]), Lane.DECODE, now=NOW)
    with pytest.raises(WireError, match="0 rows"):
        codec.step_value(pb.Step(), Lane.DECODE, now=NOW)
    with pytest.raises(WireError, match="5000 rows"):
        codec.step_value(pb.Step(rows=[pb.Row()] * 5000), Lane.DECODE, now=NOW)


@pytest.mark.parametrize("changes", [{"temperature": float("nan")}, {"top_p": 7.0}, {"repetition_penalty": 0.0}])
def test_open_with_impossible_sampling_is_refused(changes) -> None:
    """A node checks the bounds of sampling parameters itself."""
    sampling = pb.Sampling(top_p=1, repetition_penalty=1, repetition_context=20)
    for key, value in changes.items():
        setattr(sampling, key, value)
    with pytest.raises(WireError, match=next(iter(changes))):
        codec.open_value(pb.OpenRequest(sampling=sampling, next_hop=pb.NextHop(kind="END")))


@given(st.binary(max_size=200))
def test_random_bytes_never_break_the_decoder(data) -> None:
    """Any bytes that protobuf accepts decode to a step or raise WireError."""
    try:
        message = pb.Step.FromString(data)
    except Exception:  # noqa: BLE001 - protobuf's own refusal
        return
    with contextlib.suppress(WireError):
        codec.step_value(message, Lane.DECODE, now=NOW)
