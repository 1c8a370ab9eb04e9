"""Messages to plain values and back. A message that breaks the protocol is refused here, before an array is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from pydantic import ValidationError

from shardhub.errors import UsageError, WireError, by_name
from shardhub.manifest import MAX_CROSSINGS, MAX_DIMS, MAX_STAGES, Crossing
from shardhub.parameters import MAX_LOGIT_BIAS, SamplingParameters
from shardhub.protocol import (
    KV_BITS,
    KV_GROUP_SIZES,
    Description,
    HopKind,
    Lane,
    Limits,
    Mask,
    NextHop,
    Opened,
    OpenSession,
    Row,
    RowResult,
    StageFacts,
    StageTime,
    Step,
    StepFailure,
    StepResult,
    TopTokens,
)
from shardhub.tensors import DTYPE_SIZES, RawTensor
from shardhub.wire import shardhub_pb2 as pb

# Most rows of a step; more indicate an attack.
MAX_ROWS = 4096
# Most figures read of a node's load.
MAX_LOADS = 64
# Longest deadline a step may carry, seconds: a day.
MAX_TIMEOUT_S = 86_400

_HOPS = {HopKind.DIAL: pb.NextHop.DIAL, HopKind.OPENER: pb.NextHop.OPENER, HopKind.END: pb.NextHop.END}
_HOPS_BACK = {value: key for key, value in _HOPS.items()}
_LANES = {Lane.PREFILL: pb.Hello.PREFILL, Lane.DECODE: pb.Hello.DECODE}
_LANES_BACK = {value: key for key, value in _LANES.items()}
_DTYPES = frozenset(pb.DType.values()) - {pb.DTYPE_UNSPECIFIED}


def step_message(step: Step, *, now: float) -> pb.LinkMessage:
    """Convert a step to a link message; its deadline becomes the time that remains `now`, in monotonic seconds."""
    left_ms = max(1, int((step.deadline - now) * 1000))
    return pb.LinkMessage(
        step=pb.Step(
            rows=[_row_message(row) for row in step.rows],
            length=step.length,
            ids=step.ids,
            crossings=[
                pb.Tensor(name=name, dtype=t.dtype, shape=t.shape, data=bytes(t.data))
                for name, t in step.crossings.items()
            ],
            timeout_ms=min(left_ms, MAX_TIMEOUT_S * 1000),
            verify=step.verify,
            times=_time_messages(step.times),
        )
    )


def step_value(message: pb.Step, lane: Lane, *, now: float) -> Step:
    """Convert a message received on a lane `now`, in monotonic seconds, to a step.

    Raises:
        WireError: Counts exceed the limits, a dtype is unknown, a crossing occurs twice, or bytes and shape disagree.
    """
    if not 0 < len(message.rows) <= MAX_ROWS:
        raise WireError(f"A step has {len(message.rows)} rows.")
    if len(message.crossings) > MAX_CROSSINGS:
        raise WireError(f"A step has {len(message.crossings)} crossings.")
    crossings: dict[str, RawTensor] = {}
    for tensor in message.crossings:
        if tensor.name in crossings:
            raise WireError(f"The crossing {tensor.name[:64]!r} occurs twice in a step.")
        crossings[tensor.name] = _tensor_value(tensor)
    return Step(
        rows=tuple(_row_value(row) for row in message.rows),
        length=message.length,
        ids=message.ids,
        crossings=crossings,
        deadline=now + min(message.timeout_ms / 1000, MAX_TIMEOUT_S),
        lane=lane,
        verify=message.verify,
        times=_time_values(message.times),
    )


def result_message(result: StepResult, boot_id: bytes) -> pb.LinkMessage:
    """Convert a result to a link message."""
    rows = [
        pb.RowResult(
            session=r.session,
            epoch=r.epoch,
            position=r.position,
            tokens=r.tokens,
            logprobs=r.logprobs,
            top=_top_messages(r.top),
            target_logprobs=r.target_logprobs,
            target_top=_top_messages(r.target_top),
        )
        for r in result.rows
    ]
    return pb.LinkMessage(result=pb.Result(rows=rows, boot_id=boot_id, times=_time_messages(result.times)))


def result_value(message: pb.Result, lane: Lane) -> StepResult:
    """Convert a message received on a lane to a result."""
    return StepResult(
        lane=lane,
        times=_time_values(message.times),
        rows=tuple(
            RowResult(
                session=row.session,
                epoch=row.epoch,
                position=row.position,
                tokens=tuple(row.tokens),
                logprobs=tuple(row.logprobs),
                top=_top_values(row.top),
                target_logprobs=tuple(row.target_logprobs),
                target_top=_top_values(row.target_top),
            )
            for row in message.rows
        ),
    )


def failure_message(failure: StepFailure) -> pb.LinkMessage:
    """Convert a failure to a link message: the name of the error's class, and its three texts."""
    error = failure.error
    return pb.LinkMessage(
        failure=pb.Failure(
            rows=[_row_message(row) for row in failure.rows],
            error=type(error).__name__,
            what=error.what,
            why=error.why,
            hint=error.hint,
        )
    )


def failure_value(message: pb.Failure) -> StepFailure:
    """Convert a message to a failure, whose error is rebuilt from its class name."""
    return StepFailure(
        rows=tuple(_row_value(row) for row in message.rows),
        error=by_name(message.error, message.what[:2000], why=message.why[:2000], hint=message.hint[:2000]),
    )


def open_message(call: OpenSession) -> pb.OpenRequest:
    """Convert an open call to a message."""
    p = call.parameters
    return pb.OpenRequest(
        head=call.head,
        session=call.session,
        epoch=call.epoch,
        context=call.context,
        sampling=pb.Sampling(
            temperature=p.temperature,
            top_p=p.top_p,
            top_k=p.top_k,
            min_p=p.min_p,
            repetition_penalty=p.repetition_penalty,
            repetition_context=p.repetition_context,
            seed=p.seed,
            choice=p.choice,
            presence_penalty=p.presence_penalty,
            frequency_penalty=p.frequency_penalty,
            logit_bias=dict(p.logit_bias),
            answer_start=p.answer_start,
            top_logprobs=p.top_logprobs,
        ),
        next_hop=pb.NextHop(kind=_HOPS[call.next_hop.kind], address=call.next_hop.address),
        position=call.position,
        fork_of=call.fork_of,
    )


def open_value(message: pb.OpenRequest) -> OpenSession:
    """Convert a message to an open call.

    Raises:
        WireError: Sampling parameters are out of bounds, or the kind of hop is unknown.
    """
    if message.next_hop.kind not in _HOPS_BACK:
        raise WireError(f"The kind of the next hop, {message.next_hop.kind}, is unknown.")
    s = message.sampling
    if len(s.logit_bias) > MAX_LOGIT_BIAS:
        raise WireError(f"A session has {len(s.logit_bias)} logit biases.")
    try:
        parameters = SamplingParameters(
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            min_p=s.min_p,
            repetition_penalty=s.repetition_penalty,
            repetition_context=s.repetition_context,
            seed=s.seed,
            choice=s.choice,
            presence_penalty=s.presence_penalty,
            frequency_penalty=s.frequency_penalty,
            logit_bias=tuple(sorted(s.logit_bias.items())),
            answer_start=s.answer_start,
            top_logprobs=s.top_logprobs,
        )
    except UsageError as error:
        raise WireError(error.what, why=error.why) from error
    return OpenSession(
        head=message.head,
        session=message.session,
        epoch=message.epoch,
        context=message.context,
        parameters=parameters,
        next_hop=NextHop(kind=_HOPS_BACK[message.next_hop.kind], address=message.next_hop.address),
        position=message.position if message.HasField("position") else None,
        fork_of=message.fork_of,
    )


def opened_message(opened: Opened) -> pb.OpenReply:
    """Convert the answer to an open call to a message."""
    return pb.OpenReply(position=opened.position, rewind_floor=opened.rewind_floor, boot_id=opened.boot_id)


def opened_value(message: pb.OpenReply) -> Opened:
    """Convert a message to the answer to an open call."""
    return Opened(position=message.position, rewind_floor=message.rewind_floor, boot_id=message.boot_id)


def description_message(description: Description) -> pb.DescribeReply:
    """Convert a node's description to a message."""
    facts, limits = description.stage, description.limits
    return pb.DescribeReply(
        protocol_versions=description.protocol_versions,
        stage=pb.StageFacts(
            stage_digests=facts.digests,
            boundaries=facts.boundaries,
            num_layers=facts.num_layers,
            config_digest=facts.config_digest,
            graph_hash=facts.graph_hash,
            dtype=facts.dtype,
            hidden_size=facts.hidden_size,
            vocab_size=facts.vocab_size,
            kv_bits=facts.kv_bits,
            kv_group_size=facts.kv_group_size,
            crossings_in=[
                pb.CrossingSpec(name=c.name, dtype=c.dtype, shape=[str(d) for d in c.shape]) for c in facts.crossings_in
            ],
        ),
        limits=pb.Limits(**{name: getattr(limits, name) for name in Limits.__slots__}),
        boot_id=description.boot_id,
        advertise=description.advertise,
        num_sessions=description.num_sessions,
        host=dict(description.host),
        load=dict(description.load),
    )


def description_value(message: pb.DescribeReply) -> Description:
    """Convert a message to a node's description.

    Raises:
        WireError: The message breaks the protocol.
    """
    stage = message.stage
    if len(stage.boundaries) != len(stage.stage_digests) + 1 or list(stage.boundaries) != sorted(set(stage.boundaries)):
        raise WireError("A node describes invalid layer ranges.")
    if stage.kv_bits and (stage.kv_bits not in KV_BITS or stage.kv_group_size not in KV_GROUP_SIZES):
        raise WireError(
            f"A node's description states an invalid quantisation of K and V: {stage.kv_bits} bits in groups of "
            f"{stage.kv_group_size}."
        )
    try:
        crossings = tuple(
            Crossing(
                name=c.name,
                dtype=pb.DType.Name(c.dtype),
                shape=tuple(int(d) if d.isdigit() else d for d in c.shape),  # type: ignore[misc]
            )
            for c in stage.crossings_in
        )
    except (ValidationError, ValueError) as error:
        raise WireError("A node's description lists invalid crossings.") from error
    return Description(
        protocol_versions=tuple(message.protocol_versions),
        stage=StageFacts(
            digests=tuple(stage.stage_digests),
            boundaries=tuple(stage.boundaries),
            num_layers=stage.num_layers,
            config_digest=stage.config_digest,
            graph_hash=stage.graph_hash,
            dtype=stage.dtype,
            hidden_size=stage.hidden_size,
            vocab_size=stage.vocab_size,
            crossings_in=crossings,
            kv_bits=stage.kv_bits,
            kv_group_size=stage.kv_group_size,
        ),
        limits=Limits(**{name: getattr(message.limits, name) for name in Limits.__slots__}),
        boot_id=message.boot_id,
        advertise=tuple(message.advertise),
        num_sessions=message.num_sessions,
        host=_text_map(message.host),
        load={key[:64]: value for key, value in list(message.load.items())[:MAX_LOADS]},
    )


def hello_message(*, head: bytes, lane: Lane, version: int, is_head: bool, boot_id: bytes = b"") -> pb.LinkMessage:
    """Make the first message on a link."""
    role = pb.Hello.HEAD if is_head else pb.Hello.PEER
    return pb.LinkMessage(
        hello=pb.Hello(protocol_version=version, head=head, role=role, lane=_LANES[lane], boot_id=boot_id)
    )


def hello_lane(hello: pb.Hello) -> Lane:
    """Return the lane that a hello names.

    Raises:
        WireError: The lane is missing or unknown.
    """
    if hello.lane not in _LANES_BACK:
        raise WireError(f"A link's hello names the unknown lane {hello.lane}.")
    return _LANES_BACK[hello.lane]


def masks_message(masks: Iterable[Mask]) -> pb.LinkMessage:
    """Convert masks to a link message."""
    return pb.LinkMessage(
        masks=pb.Masks(
            masks=[pb.Mask(session=m.session, epoch=m.epoch, position=m.position, allowed=m.allowed) for m in masks]
        )
    )


def masks_value(message: pb.Masks) -> list[Mask]:
    """Convert a message to masks.

    Raises:
        WireError: There are too many.
    """
    if len(message.masks) > MAX_ROWS:
        raise WireError(f"A message has {len(message.masks)} masks.")
    return [Mask(session=m.session, epoch=m.epoch, position=m.position, allowed=m.allowed) for m in message.masks]


def _row_message(row: Row) -> pb.Row:
    return pb.Row(
        session=row.session,
        epoch=row.epoch,
        position=row.position,
        sample=row.sample,
        discard=row.discard,
        masked=row.masked,
        targets=row.targets,
    )


def _row_value(row: pb.Row) -> Row:
    return Row(
        session=row.session,
        epoch=row.epoch,
        position=row.position,
        sample=row.sample,
        discard=row.discard,
        masked=row.masked,
        targets=tuple(row.targets),
    )


def _top_messages(tops: Iterable[TopTokens]) -> list[pb.TopTokens]:
    return [pb.TopTokens(ids=top.ids, logprobs=top.logprobs) for top in tops]


def _top_values(tops: Iterable[pb.TopTokens]) -> tuple[TopTokens, ...]:
    return tuple(TopTokens(ids=tuple(top.ids), logprobs=tuple(top.logprobs)) for top in tops)


def _time_messages(times: Sequence[StageTime]) -> list[pb.StageTime]:
    return [pb.StageTime(wait_us=round(t.wait_s * 1e6), compute_us=round(t.compute_s * 1e6)) for t in times]


def _time_values(times: Iterable[pb.StageTime]) -> tuple[StageTime, ...]:
    first = islice(times, MAX_STAGES)
    return tuple(StageTime(wait_s=t.wait_us / 1e6, compute_s=t.compute_us / 1e6) for t in first)


def _tensor_value(tensor: pb.Tensor) -> RawTensor:
    if tensor.dtype not in _DTYPES:
        raise WireError(f"The crossing {tensor.name[:64]!r} has the unknown dtype {tensor.dtype}.")
    if len(tensor.shape) > MAX_DIMS:
        raise WireError(
            f"The crossing {tensor.name[:64]!r} has {len(tensor.shape)} dimensions.",
            why=f"At most {MAX_DIMS} are allowed.",
        )
    dtype = pb.DType.Name(tensor.dtype)
    expected = DTYPE_SIZES[dtype]
    for dimension in tensor.shape:
        expected *= dimension
    if expected != len(tensor.data):
        raise WireError(
            f"The crossing {tensor.name[:64]!r} has {len(tensor.data)} bytes.",
            why=f"{dtype}{list(tensor.shape)} takes {expected}.",
        )
    return RawTensor(dtype=dtype, shape=tuple(tensor.shape), data=tensor.data)


def _text_map(values: Mapping[str, str]) -> dict[str, str]:
    """Limit the facts a node gives for people to printable text of bounded size."""
    kept = list(values.items())[:64]
    return {key[:64]: "".join(c for c in value[:200] if c.isprintable()) for key, value in kept}
