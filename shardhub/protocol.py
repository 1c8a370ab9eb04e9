"""What passes between a head and its nodes, as plain values: calls on sessions, steps, results, failures.

The same values go to an engine in the caller and, as messages, over the wire (`protos/shardhub.proto`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from shardhub.errors import ShardhubError, UsageError
from shardhub.manifest import Crossing
from shardhub.parameters import SamplingParameters
from shardhub.tensors import RawTensor

# Versions of the wire protocol this build speaks; a head and a node agree on the highest they share.
PROTOCOL_VERSIONS = (1,)
SESSION_ID_BYTES = 16


def new_id() -> bytes:
    """A random 128-bit id."""
    return secrets.token_bytes(SESSION_ID_BYTES)


class Lane(Enum):
    """The two streams of a link, so that a long prefill never stands before a decode step."""

    PREFILL = "prefill"
    DECODE = "decode"


class HopKind(Enum):
    """Where a stage's output goes."""

    DIAL = "dial"  # to the address of the next node
    OPENER = "opener"  # back on the head's own stream: the head hands it on
    END = "end"  # nowhere: the last stage answers the head with results


@dataclass(frozen=True, slots=True, kw_only=True)
class NextHop:
    """The next hop of a session on a node."""

    kind: HopKind
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSession:
    """Open a session on a stage, or fence an older epoch of it.

    Attributes:
        head: Id of the head that owns the session.
        session: 128-bit id, made by the head.
        epoch: Rises with each repair; calls of lower epochs are refused from then on.
        context: Positions to reserve KV for.
        position: Where the session must stand afterwards: trimmed or reset to it. None keeps what is there.
        fork_of: A new session begins with the first `position` positions of this one, which stays as it is.
    """

    head: bytes
    session: bytes
    epoch: int
    context: int
    parameters: SamplingParameters
    next_hop: NextHop
    position: int | None = None
    fork_of: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Answer to `OpenSession`.

    Attributes:
        position: Positions the KV cache holds.
        rewind_floor: Lowest position it can be trimmed to without a reset.
        boot_id: Id of the process's run: another one means that the KV is gone.
    """

    position: int
    rewind_floor: int
    boot_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HopSpeed:
    """What was measured between two neighbours before the first token.

    Attributes:
        round_trip_s: Of an empty call.
        bytes_per_s: Of a larger one.
    """

    round_trip_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One session's part of a step.

    Attributes:
        position: Positions the session holds before this step, once `discard` are dropped.
        sample: Whether the last stage draws a token after the row's last id.
        discard: Positions to drop first: drafts that were wrong.
        masked: The draw waits for a mask, which comes to the last stage straight from the head.
        targets: Ids that follow each of the row's ids: the last stage tells how likely they were. None asks nothing.
    """

    session: bytes
    epoch: int
    position: int
    sample: bool
    discard: int = 0
    masked: bool = False
    targets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """Which tokens a draw may choose from.

    Attributes:
        position: Positions the session holds after the step that draws.
        allowed: A bit for each token id, the lowest first; ids beyond it are forbidden.
    """

    session: bytes
    epoch: int
    position: int
    allowed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TopTokens:
    """The most likely tokens of a position, the likeliest first, and their log probabilities."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """What a step took on a stage, in seconds: in the queue, and to compute."""

    wait_s: float
    compute_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One microbatch on its way through the chain.

    Attributes:
        rows: B sessions that travel together.
        length: L, ids of each row.
        ids: Token ids (B, L), int32 little-endian.
        crossings: What the stage before hands on, by name; empty before the first stage.
        deadline: On this process's monotonic clock, seconds.
        lane: The stream it travels on, from the head all the way round. Steps keep their order within a lane only.
        verify: The ids after the first of each row are drafts.
        times: Of the stages it has been through, in order.
    """

    rows: tuple[Row, ...]
    length: int
    ids: bytes
    crossings: Mapping[str, RawTensor]
    deadline: float
    lane: Lane
    verify: bool = False
    times: tuple[StageTime, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of its ids and tensors."""
        return len(self.ids) + sum(tensor.size_bytes for tensor in self.crossings.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """What the last stage answers for one row.

    Attributes:
        position: Positions the session holds after the step, drafts that were wrong included.
        tokens: Drawn tokens, if asked for: one, or with drafts all up to the first that was not the draft's.
        logprobs: Their log probabilities before temperature and filters.
        top: The likeliest tokens at each of them, if the session asks for any.
        target_logprobs: How likely the row's targets were.
        target_top: The likeliest tokens in their places, if the session asks for any.
    """

    session: bytes
    epoch: int
    position: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top: tuple[TopTokens, ...] = ()
    target_logprobs: tuple[float, ...] = ()
    target_top: tuple[TopTokens, ...] = ()

    @property
    def token(self) -> int | None:
        """The first of them."""
        return self.tokens[0] if self.tokens else None

    @property
    def logprob(self) -> float:
        """Its log probability."""
        return self.logprobs[0] if self.logprobs else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The last stage's answer to a step; without tokens it tells that a prefill chunk went through.

    Attributes:
        times: What the step took on each stage, in order.
    """

    rows: tuple[RowResult, ...]
    lane: Lane
    times: tuple[StageTime, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailure:
    """A step that a stage could not run, told to the head."""

    rows: tuple[Row, ...]
    error: ShardhubError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a node accepts.

    Attributes:
        max_chunk: Most ids of a row in one step.
        max_rows: Most rows in one step.
        queue_steps, queue_bytes: What it queues for one head; a head has no more than that on its way.
        max_context: Most positions of a session.
        max_sessions: Sessions at once.
        lease_s: Sessions that are not renewed end after this many seconds.
        message_bytes: Largest message.
        rewind_limit: A session can go back as long as it holds no more positions than this: 0 where the architecture's
            caches hold a state that never can, a window's length where they drop what lies before it.
    """

    max_chunk: int
    max_rows: int
    queue_steps: int
    queue_bytes: int
    max_context: int
    max_sessions: int
    lease_s: float
    message_bytes: int
    rewind_limit: int


# The host fact that says what a stage's graph is, under its machine's mlx-lm: the published one, or another that was
# shown there to be the stage's part of the whole model.
COMPUTATION = "computation"
# The host fact that says what was measured, where the stages were split although they are inexact.
INEXACT = "inexact"
AS_PUBLISHED = "as published"
PROVEN_ANEW = "proven anew"
# The host fact that says why a stage takes the steps of one session at a time; absent where it takes several.
ONE_AT_A_TIME = "one_at_a_time"


# What mlx-lm's quantised cache is right for: its rows are whole 32-bit words.
KV_BITS = (4, 8)
KV_GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvQuantization:
    """How sessions keep K and V: so many bits an element, and a scale and a bias for each group of elements."""

    bits: int
    group_size: int = 64

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("`kv_bits`", self.bits, KV_BITS),
            ("`kv_group_size`", self.group_size, KV_GROUP_SIZES),
        ):
            if value not in allowed:
                raise UsageError(f"{name} is {value}.", why=f"It must be one of {', '.join(map(str, allowed))}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """What a stage says of itself before anything runs on it.

    Attributes:
        digests: Stage digests of the shards it runs as one, in order.
        boundaries: Layer at which each of them starts, and the last one's stop.
        graph_hash: Hash of its computation under this process's mlx, mlx-lm and device.
        vocab_size: Token ids must be below it; 0 if the config does not say.
        crossings_in: What it receives.
        kv_bits, kv_group_size: Of quantised KV; 0 where it is kept in the model's dtype.
    """

    digests: tuple[str, ...]
    boundaries: tuple[int, ...]
    num_layers: int
    config_digest: str
    graph_hash: str
    dtype: str
    hidden_size: int
    vocab_size: int
    crossings_in: tuple[Crossing, ...]
    kv_bits: int = 0
    kv_group_size: int = 0

    @property
    def kv(self) -> KvQuantization | None:
        """How K and V are quantised; None where they are not."""
        return KvQuantization(bits=self.kv_bits, group_size=self.kv_group_size) if self.kv_bits else None

    @property
    def start(self) -> int:
        return self.boundaries[0]

    @property
    def stop(self) -> int:
        return self.boundaries[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Answer to Describe.

    Attributes:
        advertise: Addresses at which other nodes may reach it.
        host: What it runs on: versions, os, chip, backend, blas, memory_bytes; for people and comparisons.
        load: What it is busy with: counters and gauges, for people.
    """

    protocol_versions: tuple[int, ...]
    stage: StageFacts
    limits: Limits
    boot_id: bytes
    advertise: tuple[str, ...]
    num_sessions: int
    host: Mapping[str, str] = field(default_factory=dict)
    load: Mapping[str, float] = field(default_factory=dict)
