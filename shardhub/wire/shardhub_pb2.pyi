from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    BOOL: _ClassVar[DType]
    U8: _ClassVar[DType]
    I8: _ClassVar[DType]
    U16: _ClassVar[DType]
    I16: _ClassVar[DType]
    F16: _ClassVar[DType]
    BF16: _ClassVar[DType]
    U32: _ClassVar[DType]
    I32: _ClassVar[DType]
    F32: _ClassVar[DType]
    U64: _ClassVar[DType]
    I64: _ClassVar[DType]
    F64: _ClassVar[DType]
    C64: _ClassVar[DType]
DTYPE_UNSPECIFIED: DType
BOOL: DType
U8: DType
I8: DType
U16: DType
I16: DType
F16: DType
BF16: DType
U32: DType
I32: DType
F32: DType
U64: DType
I64: DType
F64: DType
C64: DType

class DescribeMachineRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchMachineRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MachineReply(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: bytes
    def __init__(self, state: _Optional[bytes] = ...) -> None: ...

class WantRequest(_message.Message):
    __slots__ = ("deployment", "documents", "hub_token")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    HUB_TOKEN_FIELD_NUMBER: _ClassVar[int]
    deployment: bytes
    documents: _containers.RepeatedCompositeFieldContainer[NamedDocument]
    hub_token: str
    def __init__(self, deployment: _Optional[bytes] = ..., documents: _Optional[_Iterable[_Union[NamedDocument, _Mapping]]] = ..., hub_token: _Optional[str] = ...) -> None: ...

class NamedDocument(_message.Message):
    __slots__ = ("name", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    data: bytes
    def __init__(self, name: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class WantReply(_message.Message):
    __slots__ = ("orders",)
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    orders: bytes
    def __init__(self, orders: _Optional[bytes] = ...) -> None: ...

class IntroduceMachineRequest(_message.Message):
    __slots__ = ("introduction",)
    INTRODUCTION_FIELD_NUMBER: _ClassVar[int]
    introduction: bytes
    def __init__(self, introduction: _Optional[bytes] = ...) -> None: ...

class IntroduceMachineReply(_message.Message):
    __slots__ = ("introduction", "newer")
    INTRODUCTION_FIELD_NUMBER: _ClassVar[int]
    NEWER_FIELD_NUMBER: _ClassVar[int]
    introduction: bytes
    newer: _containers.RepeatedCompositeFieldContainer[WantRequest]
    def __init__(self, introduction: _Optional[bytes] = ..., newer: _Optional[_Iterable[_Union[WantRequest, _Mapping]]] = ...) -> None: ...

class ProbeMachineRequest(_message.Message):
    __slots__ = ("payload",)
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    def __init__(self, payload: _Optional[bytes] = ...) -> None: ...

class ProbeMachineReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReadFilesRequest(_message.Message):
    __slots__ = ("order", "hub", "hub_token")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    HUB_FIELD_NUMBER: _ClassVar[int]
    HUB_TOKEN_FIELD_NUMBER: _ClassVar[int]
    order: bytes
    hub: str
    hub_token: str
    def __init__(self, order: _Optional[bytes] = ..., hub: _Optional[str] = ..., hub_token: _Optional[str] = ...) -> None: ...

class ReadFilesReply(_message.Message):
    __slots__ = ("report",)
    REPORT_FIELD_NUMBER: _ClassVar[int]
    report: bytes
    def __init__(self, report: _Optional[bytes] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("protocol_versions", "stage", "limits", "boot_id", "advertise", "num_sessions", "host", "load")
    class HostEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LoadEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PROTOCOL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    ADVERTISE_FIELD_NUMBER: _ClassVar[int]
    NUM_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    protocol_versions: _containers.RepeatedScalarFieldContainer[int]
    stage: StageFacts
    limits: Limits
    boot_id: bytes
    advertise: _containers.RepeatedScalarFieldContainer[str]
    num_sessions: int
    host: _containers.ScalarMap[str, str]
    load: _containers.ScalarMap[str, float]
    def __init__(self, protocol_versions: _Optional[_Iterable[int]] = ..., stage: _Optional[_Union[StageFacts, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., boot_id: _Optional[bytes] = ..., advertise: _Optional[_Iterable[str]] = ..., num_sessions: _Optional[int] = ..., host: _Optional[_Mapping[str, str]] = ..., load: _Optional[_Mapping[str, float]] = ...) -> None: ...

class StageFacts(_message.Message):
    __slots__ = ("stage_digests", "boundaries", "num_layers", "config_digest", "graph_hash", "dtype", "hidden_size", "crossings_in", "vocab_size", "kv_bits", "kv_group_size")
    STAGE_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    BOUNDARIES_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    GRAPH_HASH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    CROSSINGS_IN_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    KV_BITS_FIELD_NUMBER: _ClassVar[int]
    KV_GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    stage_digests: _containers.RepeatedScalarFieldContainer[str]
    boundaries: _containers.RepeatedScalarFieldContainer[int]
    num_layers: int
    config_digest: str
    graph_hash: str
    dtype: str
    hidden_size: int
    crossings_in: _containers.RepeatedCompositeFieldContainer[CrossingSpec]
    vocab_size: int
    kv_bits: int
    kv_group_size: int
    def __init__(self, stage_digests: _Optional[_Iterable[str]] = ..., boundaries: _Optional[_Iterable[int]] = ..., num_layers: _Optional[int] = ..., config_digest: _Optional[str] = ..., graph_hash: _Optional[str] = ..., dtype: _Optional[str] = ..., hidden_size: _Optional[int] = ..., crossings_in: _Optional[_Iterable[_Union[CrossingSpec, _Mapping]]] = ..., vocab_size: _Optional[int] = ..., kv_bits: _Optional[int] = ..., kv_group_size: _Optional[int] = ...) -> None: ...

class CrossingSpec(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[str]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_chunk", "max_rows", "queue_steps", "queue_bytes", "max_context", "max_sessions", "lease_s", "message_bytes", "rewind_limit")
    MAX_CHUNK_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_STEPS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    REWIND_LIMIT_FIELD_NUMBER: _ClassVar[int]
    max_chunk: int
    max_rows: int
    queue_steps: int
    queue_bytes: int
    max_context: int
    max_sessions: int
    lease_s: float
    message_bytes: int
    rewind_limit: int
    def __init__(self, max_chunk: _Optional[int] = ..., max_rows: _Optional[int] = ..., queue_steps: _Optional[int] = ..., queue_bytes: _Optional[int] = ..., max_context: _Optional[int] = ..., max_sessions: _Optional[int] = ..., lease_s: _Optional[float] = ..., message_bytes: _Optional[int] = ..., rewind_limit: _Optional[int] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "repetition_context", "seed", "choice", "presence_penalty", "frequency_penalty", "logit_bias", "answer_start", "top_logprobs")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_START_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    repetition_context: int
    seed: int
    choice: int
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    answer_start: int
    top_logprobs: int
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., repetition_context: _Optional[int] = ..., seed: _Optional[int] = ..., choice: _Optional[int] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., answer_start: _Optional[int] = ..., top_logprobs: _Optional[int] = ...) -> None: ...

class NextHop(_message.Message):
    __slots__ = ("kind", "address")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[NextHop.Kind]
        DIAL: _ClassVar[NextHop.Kind]
        OPENER: _ClassVar[NextHop.Kind]
        END: _ClassVar[NextHop.Kind]
    KIND_UNSPECIFIED: NextHop.Kind
    DIAL: NextHop.Kind
    OPENER: NextHop.Kind
    END: NextHop.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    kind: NextHop.Kind
    address: str
    def __init__(self, kind: _Optional[_Union[NextHop.Kind, str]] = ..., address: _Optional[str] = ...) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("head", "session", "epoch", "context", "sampling", "next_hop", "position", "fork_of")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    NEXT_HOP_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    FORK_OF_FIELD_NUMBER: _ClassVar[int]
    head: bytes
    session: bytes
    epoch: int
    context: int
    sampling: Sampling
    next_hop: NextHop
    position: int
    fork_of: bytes
    def __init__(self, head: _Optional[bytes] = ..., session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., context: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., next_hop: _Optional[_Union[NextHop, _Mapping]] = ..., position: _Optional[int] = ..., fork_of: _Optional[bytes] = ...) -> None: ...

class OpenReply(_message.Message):
    __slots__ = ("position", "rewind_floor", "boot_id")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    REWIND_FLOOR_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    position: int
    rewind_floor: int
    boot_id: bytes
    def __init__(self, position: _Optional[int] = ..., rewind_floor: _Optional[int] = ..., boot_id: _Optional[bytes] = ...) -> None: ...

class CloseRequest(_message.Message):
    __slots__ = ("head", "session", "epoch", "park")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PARK_FIELD_NUMBER: _ClassVar[int]
    head: bytes
    session: bytes
    epoch: int
    park: bool
    def __init__(self, head: _Optional[bytes] = ..., session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., park: bool = ...) -> None: ...

class CloseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("head", "sessions")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    head: bytes
    sessions: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, head: _Optional[bytes] = ..., sessions: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("gone", "boot_id")
    GONE_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    gone: _containers.RepeatedScalarFieldContainer[bytes]
    boot_id: bytes
    def __init__(self, gone: _Optional[_Iterable[bytes]] = ..., boot_id: _Optional[bytes] = ...) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ("address", "timeout_ms", "boot_id", "payload")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    address: str
    timeout_ms: int
    boot_id: bytes
    payload: bytes
    def __init__(self, address: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., boot_id: _Optional[bytes] = ..., payload: _Optional[bytes] = ...) -> None: ...

class ProbeReply(_message.Message):
    __slots__ = ("round_trip_s", "bytes_per_s")
    ROUND_TRIP_S_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    round_trip_s: float
    bytes_per_s: float
    def __init__(self, round_trip_s: _Optional[float] = ..., bytes_per_s: _Optional[float] = ...) -> None: ...

class LinkMessage(_message.Message):
    __slots__ = ("hello", "step", "result", "failure", "masks")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    step: Step
    result: Result
    failure: Failure
    masks: Masks
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., masks: _Optional[_Union[Masks, _Mapping]] = ...) -> None: ...

class Masks(_message.Message):
    __slots__ = ("masks",)
    MASKS_FIELD_NUMBER: _ClassVar[int]
    masks: _containers.RepeatedCompositeFieldContainer[Mask]
    def __init__(self, masks: _Optional[_Iterable[_Union[Mask, _Mapping]]] = ...) -> None: ...

class Mask(_message.Message):
    __slots__ = ("session", "epoch", "position", "allowed")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    position: int
    allowed: bytes
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ..., allowed: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "head", "role", "lane", "boot_id")
    class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ROLE_UNSPECIFIED: _ClassVar[Hello.Role]
        HEAD: _ClassVar[Hello.Role]
        PEER: _ClassVar[Hello.Role]
    ROLE_UNSPECIFIED: Hello.Role
    HEAD: Hello.Role
    PEER: Hello.Role
    class Lane(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LANE_UNSPECIFIED: _ClassVar[Hello.Lane]
        PREFILL: _ClassVar[Hello.Lane]
        DECODE: _ClassVar[Hello.Lane]
    LANE_UNSPECIFIED: Hello.Lane
    PREFILL: Hello.Lane
    DECODE: Hello.Lane
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    head: bytes
    role: Hello.Role
    lane: Hello.Lane
    boot_id: bytes
    def __init__(self, protocol_version: _Optional[int] = ..., head: _Optional[bytes] = ..., role: _Optional[_Union[Hello.Role, str]] = ..., lane: _Optional[_Union[Hello.Lane, str]] = ..., boot_id: _Optional[bytes] = ...) -> None: ...

class Row(_message.Message):
    __slots__ = ("session", "epoch", "position", "sample", "discard", "masked", "targets")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    MASKED_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    position: int
    sample: bool
    discard: int
    masked: bool
    targets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ..., sample: bool = ..., discard: _Optional[int] = ..., masked: bool = ..., targets: _Optional[_Iterable[int]] = ...) -> None: ...

class StageTime(_message.Message):
    __slots__ = ("wait_us", "compute_us")
    WAIT_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    wait_us: int
    compute_us: int
    def __init__(self, wait_us: _Optional[int] = ..., compute_us: _Optional[int] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("rows", "length", "ids", "crossings", "timeout_ms", "verify", "times")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    CROSSINGS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[Row]
    length: int
    ids: bytes
    crossings: _containers.RepeatedCompositeFieldContainer[Tensor]
    timeout_ms: int
    verify: bool
    times: _containers.RepeatedCompositeFieldContainer[StageTime]
    def __init__(self, rows: _Optional[_Iterable[_Union[Row, _Mapping]]] = ..., length: _Optional[int] = ..., ids: _Optional[bytes] = ..., crossings: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., timeout_ms: _Optional[int] = ..., verify: bool = ..., times: _Optional[_Iterable[_Union[StageTime, _Mapping]]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class RowResult(_message.Message):
    __slots__ = ("session", "epoch", "position", "tokens", "logprobs", "top", "target_logprobs", "target_top")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    TARGET_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOP_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    position: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    top: _containers.RepeatedCompositeFieldContainer[TopTokens]
    target_logprobs: _containers.RepeatedScalarFieldContainer[float]
    target_top: _containers.RepeatedCompositeFieldContainer[TopTokens]
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., top: _Optional[_Iterable[_Union[TopTokens, _Mapping]]] = ..., target_logprobs: _Optional[_Iterable[float]] = ..., target_top: _Optional[_Iterable[_Union[TopTokens, _Mapping]]] = ...) -> None: ...

class TopTokens(_message.Message):
    __slots__ = ("ids", "logprobs")
    IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("rows", "boot_id", "times")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[RowResult]
    boot_id: bytes
    times: _containers.RepeatedCompositeFieldContainer[StageTime]
    def __init__(self, rows: _Optional[_Iterable[_Union[RowResult, _Mapping]]] = ..., boot_id: _Optional[bytes] = ..., times: _Optional[_Iterable[_Union[StageTime, _Mapping]]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("rows", "error", "what", "why", "hint")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[Row]
    error: str
    what: str
    why: str
    hint: str
    def __init__(self, rows: _Optional[_Iterable[_Union[Row, _Mapping]]] = ..., error: _Optional[str] = ..., what: _Optional[str] = ..., why: _Optional[str] = ..., hint: _Optional[str] = ...) -> None: ...

class FindRequest(_message.Message):
    __slots__ = ("sha256", "port")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    sha256: _containers.RepeatedScalarFieldContainer[bytes]
    port: int
    def __init__(self, sha256: _Optional[_Iterable[bytes]] = ..., port: _Optional[int] = ...) -> None: ...

class FindReply(_message.Message):
    __slots__ = ("files", "claims", "instance")
    FILES_FIELD_NUMBER: _ClassVar[int]
    CLAIMS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[SharedFile]
    claims: _containers.RepeatedCompositeFieldContainer[Claim]
    instance: bytes
    def __init__(self, files: _Optional[_Iterable[_Union[SharedFile, _Mapping]]] = ..., claims: _Optional[_Iterable[_Union[Claim, _Mapping]]] = ..., instance: _Optional[bytes] = ...) -> None: ...

class Claim(_message.Message):
    __slots__ = ("sha256", "done_bytes", "begun")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    done_bytes: int
    begun: bool
    def __init__(self, sha256: _Optional[bytes] = ..., done_bytes: _Optional[int] = ..., begun: bool = ...) -> None: ...

class SharedFile(_message.Message):
    __slots__ = ("sha256", "size_bytes")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    size_bytes: int
    def __init__(self, sha256: _Optional[bytes] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("sha256", "start", "stop")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    start: int
    stop: int
    def __init__(self, sha256: _Optional[bytes] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class ReadReply(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class IntroduceRequest(_message.Message):
    __slots__ = ("addresses",)
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class IntroduceReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
