"""Pipeline-parallel LLM inference with MLX: split, publish, serve and run a model across several machines.

The names in `__all__` are the library, see docs/library.md. It is provisional until version 1.0: a minor release may
change it, and the changelog says how. Each name is imported when it is first used, so that `import shardhub` is quick
and brings no MLX.
"""

from __future__ import annotations

# Importing `typing` would take most of the time that this module takes; type checkers know the name.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from shardhub.chain.chain_status import ChainStatus, NodeStatus
    from shardhub.chain.head import (
        Piece,
    )
    from shardhub.chain.settings import (
        Recovery,
    )
    from shardhub.checkpoint.quantisation import Quantisation
    from shardhub.errors import (
        AccessError,
        AddressError,
        CertificateRefused,
        ChainError,
        Conflict,
        ContextExceeded,
        DigestMismatch,
        DiskFull,
        DoesNotFit,
        FormatError,
        HandshakeError,
        HeadClosed,
        HubRefused,
        HubUnreachable,
        IdentityError,
        IntegrityError,
        NewerFormat,
        NodeFailure,
        NodeLoading,
        NodeLost,
        NodeUnreachable,
        NonFiniteWeights,
        NotFound,
        OtherPipeline,
        Overloaded,
        ParityFailed,
        PlanError,
        PositionMismatch,
        PromptError,
        ProofExceeded,
        ProofFailed,
        ResourceError,
        RouteError,
        SessionError,
        SessionNotRewindable,
        SessionUnknown,
        ShardhubError,
        SignatureError,
        StaleEpoch,
        StepTimeout,
        UnsupportedModel,
        UsageError,
        WeightFileError,
        WireError,
    )
    from shardhub.gateway.keys import Keys, read_keys
    from shardhub.gateway.settings import GatewaySettings
    from shardhub.usecases.answer import Answer, HeadStatus, Sampling, ScoredToken, StagesAt, Usage
    from shardhub.usecases.bench import BenchLevel, BenchReport, BenchSettings, bench
    from shardhub.usecases.cache import (
        Pulled,
        PullSettings,
        pull,
    )
    from shardhub.usecases.cut import (
        Cut,
    )
    from shardhub.usecases.live_status import LiveStatus, StatusSettings, live_status
    from shardhub.usecases.open_gateway import GatewayFacts, RunningGateway, open_gateway
    from shardhub.usecases.open_head import AnswerStream, AsyncAnswerStream, AsyncHead, Head, open_head
    from shardhub.usecases.parity import (
        ParitySettings,
    )
    from shardhub.usecases.plan import (
        ModelPlan,
        PlanSettings,
        Verdict,
        plan,
    )
    from shardhub.usecases.publish import (
        PublishSettings,
        publish,
    )
    from shardhub.usecases.push import (
        Publication,
        PushSettings,
        push,
    )
    from shardhub.usecases.search import PublishedPipeline, SearchSettings, search
    from shardhub.usecases.serve import (
        Node,
        NodeFacts,
        ServeSettings,
        serve,
    )
    from shardhub.usecases.split import (
        Split,
        SplitSettings,
        split,
    )
    from shardhub.usecases.start_head import (
        HeadSettings,
    )
    from shardhub.usecases.verify_files import (
        Check,
        Verification,
        VerifySettings,
    )
    from shardhub.usecases.verify_files import (
        verify_files as verify,
    )
    from shardhub.usecases.verify_reference import (
        ReferenceRecord,
        ReferenceSettings,
        verify_reference,
    )
    from shardhub.usecases.verify_run import (
        RunVerification,
        verify_run,
    )
    from shardhub.usecases.verify_source import (
        SourceSettings,
        SourceVerification,
        verify_source,
    )
    from shardhub.usecases.watcher import (
        Progress,
        Watcher,
    )
    from shardhub.version import __version__

__all__ = [
    "AccessError",
    "AddressError",
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncHead",
    "BenchLevel",
    "BenchReport",
    "BenchSettings",
    "CertificateRefused",
    "ChainError",
    "ChainStatus",
    "Check",
    "Conflict",
    "ContextExceeded",
    "Cut",
    "DigestMismatch",
    "DiskFull",
    "DoesNotFit",
    "FormatError",
    "GatewayFacts",
    "GatewaySettings",
    "HandshakeError",
    "Head",
    "HeadClosed",
    "HeadSettings",
    "HeadStatus",
    "HubRefused",
    "HubUnreachable",
    "IdentityError",
    "IntegrityError",
    "Keys",
    "LiveStatus",
    "ModelPlan",
    "NewerFormat",
    "Node",
    "NodeFacts",
    "NodeFailure",
    "NodeLoading",
    "NodeLost",
    "NodeStatus",
    "NodeUnreachable",
    "NonFiniteWeights",
    "NotFound",
    "OtherPipeline",
    "Overloaded",
    "ParityFailed",
    "ParitySettings",
    "Piece",
    "PlanError",
    "PlanSettings",
    "PositionMismatch",
    "Progress",
    "PromptError",
    "ProofExceeded",
    "ProofFailed",
    "Publication",
    "PublishSettings",
    "PublishedPipeline",
    "PullSettings",
    "Pulled",
    "PushSettings",
    "Quantisation",
    "Recovery",
    "ReferenceRecord",
    "ReferenceSettings",
    "ResourceError",
    "RouteError",
    "RunVerification",
    "RunningGateway",
    "Sampling",
    "ScoredToken",
    "SearchSettings",
    "ServeSettings",
    "SessionError",
    "SessionNotRewindable",
    "SessionUnknown",
    "ShardhubError",
    "SignatureError",
    "SourceSettings",
    "SourceVerification",
    "Split",
    "SplitSettings",
    "StagesAt",
    "StaleEpoch",
    "StatusSettings",
    "StepTimeout",
    "UnsupportedModel",
    "Usage",
    "UsageError",
    "Verdict",
    "Verification",
    "VerifySettings",
    "Watcher",
    "WeightFileError",
    "WireError",
    "__version__",
    "bench",
    "live_status",
    "open_gateway",
    "open_head",
    "plan",
    "publish",
    "pull",
    "push",
    "read_keys",
    "search",
    "serve",
    "split",
    "verify",
    "verify_reference",
    "verify_run",
    "verify_source",
]

# Where each name is defined: the module under shardhub, and the name there if it differs.
_HOMES: dict[str, tuple[str, ...]] = {
    "checkpoint.quantisation": ("Quantisation",),
    "usecases.bench": ("BenchLevel", "BenchReport", "BenchSettings", "bench"),
    "usecases.live_status": ("LiveStatus", "StatusSettings", "live_status"),
    "usecases.open_gateway": ("GatewayFacts", "RunningGateway", "open_gateway"),
    "chain.chain_status": ("ChainStatus", "NodeStatus"),
    "gateway.keys": ("Keys", "read_keys"),
    "gateway.settings": ("GatewaySettings",),
    "chain.head": ("Piece",),
    "chain.settings": ("Recovery",),
    "usecases.cache": (
        "PullSettings",
        "Pulled",
        "pull",
    ),
    "usecases.cut": ("Cut",),
    "usecases.answer": (
        "Answer",
        "HeadStatus",
        "Sampling",
        "ScoredToken",
        "StagesAt",
        "Usage",
    ),
    "usecases.open_head": (
        "AnswerStream",
        "AsyncAnswerStream",
        "AsyncHead",
        "Head",
        "open_head",
    ),
    "usecases.parity": ("ParitySettings",),
    "usecases.plan": (
        "ModelPlan",
        "PlanSettings",
        "Verdict",
        "plan",
    ),
    "usecases.publish": (
        "PublishSettings",
        "publish",
    ),
    "usecases.push": (
        "Publication",
        "PushSettings",
        "push",
    ),
    "usecases.search": ("PublishedPipeline", "SearchSettings", "search"),
    "usecases.serve": (
        "Node",
        "NodeFacts",
        "ServeSettings",
        "serve",
    ),
    "usecases.split": (
        "Split",
        "SplitSettings",
        "split",
    ),
    "usecases.start_head": ("HeadSettings",),
    "usecases.verify_files": (
        "Check",
        "Verification",
        "VerifySettings",
        "verify",
    ),
    "usecases.verify_reference": (
        "ReferenceRecord",
        "ReferenceSettings",
        "verify_reference",
    ),
    "usecases.verify_run": (
        "RunVerification",
        "verify_run",
    ),
    "usecases.verify_source": (
        "SourceSettings",
        "SourceVerification",
        "verify_source",
    ),
    "usecases.watcher": (
        "Progress",
        "Watcher",
    ),
}
_OTHER_NAMES = {"verify": "verify_files"}


def __getattr__(name: str) -> object:
    """Import a name of the library on first use."""
    from importlib import import_module

    if name == "__version__":
        from shardhub.version import __version__

        return __version__
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "errors")
    value: object = getattr(import_module(f"{__name__}.{home}"), _OTHER_NAMES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
