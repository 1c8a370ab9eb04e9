"""How a gateway is to serve."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from shardhub.gateway.keys import Keys


class ReasoningField(StrEnum):
    """Where a chat's message holds what the model thinks."""

    REASONING_CONTENT = "reasoning_content"
    REASONING = "reasoning"
    BOTH = "both"

    @property
    def names(self) -> tuple[str, ...]:
        """The fields."""
        return ("reasoning_content", "reasoning") if self is ReasoningField.BOTH else (self.value,)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """How a gateway is to serve.

    Attributes:
        host, port: Where to listen; port 0 takes a free one.
        insecure_lan: Listen off loopback without a key.
        keys: Keys that clients must have; without any, no client needs one.
        names: Hosts by which clients may call it, besides loopback's and `host`.
        origins: Web pages, as `https://host[:port]`, that may call it from a browser, besides its own.
        model_names: By which clients may ask for the model; the first is told to them. `*` among them is any name.
        reasoning_fields: Of a chat's message, which hold what the model thinks.
        max_queue: Requests that may wait, beyond those the chain runs at once.
        max_tokens: Of an answer, where a request does not say; None is the rest of the context.
        strict_limits: Refuse a request for more tokens than the context leaves, in the place of cutting it.
        strict_content: Refuse images and the like, in the place of telling the model that they cannot be seen.
        keepalive_s: Silence in a stream after which a comment is sent.
        stall_s: How long a client that does not go on sending holds a connection; one that does not read, ten times
            as long.
        shutdown_timeout_s: How long a drain waits for answers.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    insecure_lan: bool = False
    keys: Keys = field(default_factory=Keys)
    names: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    model_names: tuple[str, ...] = ()
    # All clients read this one; vLLM has named it `reasoning` since 0.16.
    reasoning_fields: tuple[str, ...] = ("reasoning_content",)
    max_queue: int = 64
    max_tokens: int | None = None
    strict_limits: bool = False
    strict_content: bool = False
    keepalive_s: float = 5.0
    stall_s: float = 30.0
    shutdown_timeout_s: float = 30.0
