"""Settings of a gateway."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from shardhub.address import MAX_PORT
from shardhub.gateway.keys import Keys
from shardhub.setting_checks import check_settings


class ReasoningField(StrEnum):
    """The fields of a chat message that hold the reasoning."""

    REASONING_CONTENT = "reasoning_content"
    REASONING = "reasoning"
    BOTH = "both"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the fields."""
        return ("reasoning_content", "reasoning") if self is ReasoningField.BOTH else (self.value,)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Settings of a gateway.

    Attributes:
        host, port: Address to listen on; port 0 takes a free one.
        insecure_lan: Whether to listen on other than loopback addresses without a key.
        keys: The keys that are accepted; if there are none, clients need no key.
        names: Accepted Host names, besides those of loopback and `host`.
        origins: Origins of web pages that may call, as `https://host[:port]`, besides the gateway's own.
        model_names: Accepted names of the model, of which the first is reported to clients; `*` accepts any name.
        reasoning_fields: The fields of a chat message that hold the reasoning.
        max_queue: Number of requests that may wait, beyond those that the chain runs at once.
        max_tokens: Limit of an answer if the request names none; None is the rest of the context.
        strict_limits: Refuse a request for more tokens than the context leaves, instead of cutting its limit.
        strict_content: Refuse images and the like, instead of telling the model that it cannot see them.
        keepalive_s: Seconds of silence in a stream after which a comment is sent.
        stall_s: Seconds for which a client that stops sending holds its connection. A client that does not read
            holds it ten times as long.
        shutdown_timeout_s: Maximum seconds that a drain waits for answers.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    insecure_lan: bool = False
    keys: Keys = field(default_factory=Keys)
    names: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    model_names: tuple[str, ...] = ()
    # All clients read this field; vLLM has named it `reasoning` since 0.16.
    reasoning_fields: tuple[str, ...] = ("reasoning_content",)
    max_queue: int = 64
    max_tokens: int | None = None
    strict_limits: bool = False
    strict_content: bool = False
    keepalive_s: float = 5.0
    stall_s: float = 30.0
    shutdown_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        check_settings(
            self,
            port=(0, MAX_PORT),
            max_queue=(0, None),
            max_tokens=(1, None),
            keepalive_s=(0, None),
            stall_s=(0, None),
            shutdown_timeout_s=(0, None),
        )
