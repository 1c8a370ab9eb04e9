"""What passes between a head and its nodes, as plain values: calls on sessions, steps, results, failures.

The same values go to an engine in the caller's process and, as messages, over the wire (`protos/shardhub.proto`).
"""

from __future__ import annotations

import hashlib
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
    """The two streams of a link, so that a long prefill does not delay decode steps."""

    PREFILL = "prefill"
    DECODE = "decode"


class HopKind(Enum):
    """Where a stage's output goes."""

    DIAL = "dial"  # to the address of the next node
    OPENER = "opener"  # back on the head's own stream: the head forwards it
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
        epoch: Increases with each repair; calls of lower epochs are refused from then on.
        context: Positions to reserve KV for.
        position: Position the session is trimmed or reset to. None keeps the current one.
        fork_of: Id of a session whose first `position` positions the new session begins with; it stays unchanged.
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
        boot_id: Id of this run of the process; if it changes, the KV cache is gone.
    """

    position: int
    rewind_floor: int
    boot_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HopSpeed:
    """Round trip and bandwidth measured between two neighbours before the first token.

    Attributes:
        round_trip_s: Round trip of an empty call.
        bytes_per_s: Throughput of a larger call.
    """

    round_trip_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One session's part of a step.

    Attributes:
        position: Positions the session holds before this step, after `discard` are dropped.
        sample: Whether the last stage draws a token after the row's last id.
        discard: Number of positions to drop first: rejected drafts.
        masked: Whether the draw waits for a mask, which the head sends directly to the last stage.
        targets: Ids that follow each of the row's ids, whose log probabilities the last stage returns; None for none.
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
        allowed: A bit for each token id, the lowest first; ids beyond its end are forbidden.
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
    """Time a step took on a stage, in seconds: in the queue, and to compute."""

    wait_s: float
    compute_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One microbatch on its way through the chain.

    Attributes:
        rows: B sessions that travel together.
        length: L, number of ids in each row.
        ids: Token ids (B, L), int32 little-endian.
        crossings: Tensors from the stage before, by name; empty before the first stage.
        deadline: On this process's monotonic clock, seconds.
        lane: The stream it travels on through the whole chain. Steps keep their order within a lane only.
        verify: Whether the ids after the first of each row are drafts.
        times: Times of the stages it has passed, in order.
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
        """Size of its ids and tensors, in bytes."""
        return len(self.ids) + sum(tensor.size_bytes for tensor in self.crossings.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """The last stage's answer for one row.

    Attributes:
        position: Positions the session holds after the step, rejected drafts included.
        tokens: Drawn tokens, if asked for: one, or with drafts all up to the first that differs from its draft.
        logprobs: Log probabilities of `tokens` before temperature and filters.
        top: The likeliest tokens at each of `tokens`, if the session asks for any.
        target_logprobs: Log probabilities of the row's targets.
        target_top: The likeliest tokens at each target, if the session asks for any.
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
        """The first drawn token."""
        return self.tokens[0] if self.tokens else None

    @property
    def logprob(self) -> float:
        """Log probability of the first drawn token."""
        return self.logprobs[0] if self.logprobs else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The last stage's answer to a step; without tokens it confirms a prefill chunk.

    Attributes:
        times: Time the step took on each stage, in order.
    """

    rows: tuple[RowResult, ...]
    lane: Lane
    times: tuple[StageTime, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailure:
    """A report to the head of a step that a stage could not run."""

    rows: tuple[Row, ...]
    error: ShardhubError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on what a node accepts.

    Attributes:
        max_chunk: Most ids of a row in one step.
        max_rows: Most rows in one step.
        queue_steps, queue_bytes: Queue for one head, which must not have more than that in flight.
        max_context: Most positions of a session.
        max_sessions: Most sessions at once.
        lease_s: Seconds after which a session that is not renewed ends.
        message_bytes: Largest message.
        rewind_limit: Most positions with which a session can still be trimmed: 0 if the architecture's caches hold
            recurrent state, the window's length if they drop what is before the window.
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


# The host fact that says whether a stage's graph under its machine's mlx-lm is the published one, or another that was
# proven there to be the stage's part of the whole model.
COMPUTATION = "computation"
# The host fact that says what was measured of stages that were split although they are inexact.
INEXACT = "inexact"
AS_PUBLISHED = "as published"
PROVEN_ANEW = "proven anew"
# The host fact that says why a stage takes the steps of one session at a time; absent where it takes several.
ONE_AT_A_TIME = "one_at_a_time"


# Bits for which mlx-lm's quantised cache is correct: its rows are whole 32-bit words.
KV_BITS = (4, 8)
KV_GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvQuantization:
    """How sessions quantise K and V: bits per element, and a scale and a bias for each group of elements."""

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
    """What a stage reports about itself before anything runs on it.

    Attributes:
        digests: Stage digests of the shards it joins, in order.
        boundaries: Layer at which each of them starts, and the last one's stop.
        graph_hash: Hash of its computation under this process's mlx, mlx-lm and device.
        vocab_size: Upper bound of token ids, exclusive; 0 if the config does not say.
        crossings_in: Crossings it receives.
        kv_bits, kv_group_size: Quantisation of K and V; 0 if they are kept in the model's dtype.
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
        """How K and V are quantised; None if they are not."""
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
        host: The machine and its software: versions, os, chip, backend, blas, memory_bytes; for people and comparisons.
        load: Current load: counters and gauges, for people.
    """

    protocol_versions: tuple[int, ...]
    stage: StageFacts
    limits: Limits
    boot_id: bytes
    advertise: tuple[str, ...]
    num_sessions: int
    host: Mapping[str, str] = field(default_factory=dict)
    load: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A node's word that it fetches a weight file from a Hub, so that others need not.

    Attributes:
        done_bytes: Bytes that it has.
        begun: Whether the fetch has begun. Until then, of two claims the one with the higher `claim_rank` stays.
    """

    sha256: str
    done_bytes: int
    begun: bool


def claim_rank(instance: bytes, sha256: str) -> bytes:
    """The rank of a process among those that claim a file; another order for each file, so that they divide them."""
    return hashlib.sha256(instance + bytes.fromhex(sha256)).digest()
