"""Every error shardhub raises on purpose, and its gRPC status, HTTP status and exit code.

    ShardhubError
    ├── UsageError                  an invalid argument or request
    │   ├── PlanError               an invalid cut or plan
    │   ├── PromptError             an empty prompt, a bad template
    │   │   └── ContextExceeded     more positions than the session may hold
    │   └── AddressError            a host or port that cannot be served
    ├── UnsupportedModel            an architecture or checkpoint that cannot be split
    │   └── ProofFailed             the chained stages do not compute what the whole model computes
    │       ├── ProofExceeded       a step did something that the proof did not cover
    │       └── ParityFailed        stages and whole model were run side by side, and their numbers differ
    ├── IntegrityError              bytes differ from what was promised
    │   ├── FormatError             a document that breaks its specification
    │   │   └── NewerFormat         written by a later shardhub
    │   ├── WeightFileError         a safetensors file that is malformed or not the one promised
    │   ├── NonFiniteWeights        NaN or infinity in a weight
    │   ├── DigestMismatch          content and digest disagree
    │   └── SignatureError          a signature that is missing, wrong, or of another key
    ├── AccessError                 not allowed
    │   ├── IdentityError           this machine's own certificate or key cannot be used
    │   └── CertificateRefused      the other side's certificate, or ours in its eyes
    ├── NotFound                    no such repo, revision or file, or none that may be seen
    ├── Conflict                    changed by somebody else meanwhile, or the name is taken
    ├── HubRefused                  the Hub refuses a request for a reason of its own
    ├── ChainError                  a node or the network
    │   ├── HubUnreachable          no network, or no Hub that answers
    │   ├── RouteError              stages missing, served by one node twice, overlapping
    │   ├── HandshakeError          a node that serves something other than the manifest names
    │   │   └── OtherPipeline       a node that serves a stage of another pipeline, version or cut
    │   ├── NodeUnreachable         no connection
    │   │   └── NodeLoading         a node that answers but has not loaded its stage yet
    │   ├── NodeLost                the connection broke while it was used
    │   ├── StepTimeout             a step passed its deadline
    │   ├── HeadClosed              the head was closed before the answer was complete
    │   └── NodeFailure             a node reports a fault of its own
    ├── SessionError                the session's state forbids the call; nothing was changed
    │   ├── SessionUnknown          no such session here (ended, expired, or never opened)
    │   ├── StaleEpoch              fenced by a newer epoch
    │   ├── PositionMismatch        a gap or a replay
    │   └── SessionNotRewindable    the KV cache cannot go back to that position
    ├── WireError                   a message that breaks the protocol
    └── ResourceError               not enough of something
        ├── DoesNotFit              weights and KV cache exceed the memory budget
        ├── DiskFull                no disk space for what is to be written
        └── Overloaded              admission refused: sessions, KV or queue exhausted

A message has three parts, printed on one screen: what happened and where, why (the two values that disagree), and
what to do.
"""

from __future__ import annotations

from dataclasses import dataclass


class ShardhubError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: What happened, and where: one sentence.
        why: The cause, with the values that disagree.
        hint: What the reader can do next, ideally a command.
    """

    def __init__(self, what: str, *, why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why, self.hint) if part)


class UsageError(ShardhubError):
    """An argument or a request is invalid."""


class PlanError(UsageError):
    """The cut or plan is invalid."""


class PromptError(UsageError):
    """The prompt cannot be run."""


class ContextExceeded(PromptError):
    """The sequence would pass the session's context length.

    Args:
        num_tokens: How many tokens were given, at least, if that is known.
        most: How many are possible.
    """

    def __init__(
        self, what: str, *, why: str = "", hint: str = "", num_tokens: int | None = None, most: int | None = None
    ) -> None:
        super().__init__(what, why=why, hint=hint)
        self.num_tokens = num_tokens
        self.most = most


class AddressError(UsageError):
    """The address cannot or must not be served."""


class UnsupportedModel(ShardhubError):
    """The architecture or checkpoint cannot be split."""


class ProofFailed(UnsupportedModel):
    """The chained stages do not compute what the whole model computes."""


class ProofExceeded(ProofFailed):
    """A step did something that the proof did not cover, so its numbers are not known to be right."""


class ParityFailed(ProofFailed):
    """The chained stages were run beside the whole model, and their numbers differ."""


class IntegrityError(ShardhubError):
    """Bytes differ from what was promised."""


class FormatError(IntegrityError):
    """A document breaks its specification."""


class NewerFormat(FormatError):
    """A document was written by a later version, in a format that this one cannot read."""


class WeightFileError(IntegrityError):
    """A weight file is malformed, or not the one promised."""


class NonFiniteWeights(IntegrityError):
    """A weight is NaN or infinite."""


class DigestMismatch(IntegrityError):
    """Content and digest disagree."""


class SignatureError(IntegrityError):
    """A signature is missing, wrong, or made with another key."""


class AccessError(ShardhubError):
    """Permission is missing."""


class IdentityError(AccessError):
    """This machine's own certificate or key is missing, damaged, expired, or open to others."""


class CertificateRefused(AccessError):
    """A certificate is missing, foreign, expired or revoked: the other side's, or ours as the other side sees it."""


class NotFound(ShardhubError):
    """The repo, revision or file does not exist, or the caller may not see it."""


class Conflict(ShardhubError):
    """The repo was changed meanwhile by another client, or its name is taken."""


class HubRefused(ShardhubError):
    """The Hub refuses a request for a reason that it states."""


class ChainError(ShardhubError):
    """A node or the network between nodes failed."""


class HubUnreachable(ChainError):
    """The network is down, or the Hub does not answer."""


class RouteError(ChainError):
    """The available nodes do not cover the plan exactly once."""


class HandshakeError(ChainError):
    """A node serves something other than the manifest names."""


class OtherPipeline(HandshakeError):
    """A node serves a stage that the manifest does not name.

    Args:
        digests: Stage digests of what it serves.
        start: Its first layer.
        is_same_model: Whether it is another version or cut of the manifest's model, by the model's configuration.
    """

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        hint: str = "",
        digests: tuple[str, ...] = (),
        start: int = 0,
        is_same_model: bool = True,
    ) -> None:
        super().__init__(what, why=why, hint=hint)
        self.digests = digests
        self.start = start
        self.is_same_model = is_same_model

    def explained(self, *, why: str, hint: str) -> OtherPipeline:
        """The same error with another cause and advice."""
        return OtherPipeline(
            self.what,
            why=why,
            hint=hint,
            digests=self.digests,
            start=self.start,
            is_same_model=self.is_same_model,
        )


class NodeUnreachable(ChainError):
    """A node cannot be connected to."""


class NodeLoading(NodeUnreachable):
    """A node answers but has not loaded its stage yet."""


class NodeLost(ChainError):
    """The connection to a node broke while it was used."""


class StepTimeout(ChainError):
    """A step passed its deadline."""


class HeadClosed(ChainError):
    """The head was closed before the answer was complete."""


class NodeFailure(ChainError):
    """A node reports a fault of its own."""


class SessionError(ShardhubError):
    """The session's state forbids the call; nothing was changed."""


class SessionUnknown(SessionError):
    """The node has no such session."""


class StaleEpoch(SessionError):
    """A newer epoch fences this call."""


class PositionMismatch(SessionError):
    """A step leaves a gap or repeats positions."""


class SessionNotRewindable(SessionError):
    """The KV cache cannot go back to the position asked for."""


class WireError(ShardhubError):
    """A message breaks the protocol."""


class ResourceError(ShardhubError):
    """A resource is exhausted."""


class DoesNotFit(ResourceError):
    """Weights and KV cache exceed the memory budget."""


class DiskFull(ResourceError):
    """The disk has no room for what is to be written."""


class Overloaded(ResourceError):
    """Admission was refused: sessions, KV cache or queue are exhausted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The gRPC status, HTTP status and exit code of an error.

    Attributes:
        grpc: Name of a `grpc.StatusCode`.
        http: HTTP status.
        exit: Exit code of the command line: 0 done, 1 failure, 2 usage, 3 integrity, 4 access, 5 network or node,
            6 memory or disk, 70 watchdog, 130 and 143 signals.
    """

    grpc: str
    http: int
    exit: int


OUTCOMES: dict[type[ShardhubError], Outcome] = {
    PlanError: Outcome(grpc="INVALID_ARGUMENT", http=400, exit=2),
    ContextExceeded: Outcome(grpc="OUT_OF_RANGE", http=400, exit=2),
    PromptError: Outcome(grpc="INVALID_ARGUMENT", http=400, exit=2),
    AddressError: Outcome(grpc="INVALID_ARGUMENT", http=400, exit=2),
    UsageError: Outcome(grpc="INVALID_ARGUMENT", http=400, exit=2),
    ProofExceeded: Outcome(grpc="FAILED_PRECONDITION", http=500, exit=3),
    ProofFailed: Outcome(grpc="FAILED_PRECONDITION", http=500, exit=3),
    ParityFailed: Outcome(grpc="FAILED_PRECONDITION", http=500, exit=3),
    UnsupportedModel: Outcome(grpc="UNIMPLEMENTED", http=501, exit=1),
    NewerFormat: Outcome(grpc="FAILED_PRECONDITION", http=500, exit=3),
    FormatError: Outcome(grpc="DATA_LOSS", http=500, exit=3),
    WeightFileError: Outcome(grpc="DATA_LOSS", http=500, exit=3),
    NonFiniteWeights: Outcome(grpc="DATA_LOSS", http=500, exit=3),
    DigestMismatch: Outcome(grpc="DATA_LOSS", http=500, exit=3),
    IntegrityError: Outcome(grpc="DATA_LOSS", http=500, exit=3),
    SignatureError: Outcome(grpc="DATA_LOSS", http=500, exit=3),
    IdentityError: Outcome(grpc="FAILED_PRECONDITION", http=500, exit=4),
    CertificateRefused: Outcome(grpc="UNAUTHENTICATED", http=503, exit=4),
    AccessError: Outcome(grpc="PERMISSION_DENIED", http=403, exit=4),
    NotFound: Outcome(grpc="NOT_FOUND", http=404, exit=1),
    Conflict: Outcome(grpc="ABORTED", http=409, exit=1),
    HubRefused: Outcome(grpc="FAILED_PRECONDITION", http=502, exit=1),
    HubUnreachable: Outcome(grpc="UNAVAILABLE", http=503, exit=5),
    RouteError: Outcome(grpc="UNAVAILABLE", http=503, exit=5),
    HandshakeError: Outcome(grpc="FAILED_PRECONDITION", http=503, exit=5),
    OtherPipeline: Outcome(grpc="FAILED_PRECONDITION", http=503, exit=5),
    NodeLoading: Outcome(grpc="UNAVAILABLE", http=503, exit=5),
    NodeUnreachable: Outcome(grpc="UNAVAILABLE", http=503, exit=5),
    NodeLost: Outcome(grpc="UNAVAILABLE", http=503, exit=5),
    StepTimeout: Outcome(grpc="DEADLINE_EXCEEDED", http=504, exit=5),
    HeadClosed: Outcome(grpc="UNAVAILABLE", http=503, exit=5),
    NodeFailure: Outcome(grpc="INTERNAL", http=502, exit=5),
    ChainError: Outcome(grpc="UNAVAILABLE", http=503, exit=5),
    SessionUnknown: Outcome(grpc="NOT_FOUND", http=500, exit=5),
    StaleEpoch: Outcome(grpc="ABORTED", http=500, exit=5),
    PositionMismatch: Outcome(grpc="FAILED_PRECONDITION", http=500, exit=5),
    SessionNotRewindable: Outcome(grpc="FAILED_PRECONDITION", http=500, exit=5),
    SessionError: Outcome(grpc="FAILED_PRECONDITION", http=500, exit=5),
    WireError: Outcome(grpc="INVALID_ARGUMENT", http=500, exit=5),
    DoesNotFit: Outcome(grpc="RESOURCE_EXHAUSTED", http=503, exit=6),
    DiskFull: Outcome(grpc="RESOURCE_EXHAUSTED", http=507, exit=6),
    Overloaded: Outcome(grpc="RESOURCE_EXHAUSTED", http=429, exit=6),
    ResourceError: Outcome(grpc="RESOURCE_EXHAUSTED", http=503, exit=6),
    ShardhubError: Outcome(grpc="INTERNAL", http=500, exit=1),
}


def outcome(error: ShardhubError) -> Outcome:
    """The row of `OUTCOMES` for the error's exact class; a test checks that every class has one."""
    return OUTCOMES[type(error)]


def by_name(name: str, what: str, *, why: str = "", hint: str = "") -> ShardhubError:
    """Rebuild an error that the other side reported by class name; an unknown name becomes a `NodeFailure`."""
    for kind in OUTCOMES:
        if kind.__name__ == name:
            return kind(what, why=why, hint=hint)
    return NodeFailure(what, why=why, hint=hint)
