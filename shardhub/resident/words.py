"""The command of a node: `shardhub serve` with the words for an order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardhub.errors import FormatError
from shardhub.resident.deployments import HANDED_ON
from shardhub.resident.nodes import NodeOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """What all nodes of a machine have in common.

    Attributes:
        host: Where they listen, each at a free port.
        tls: Folder of certificates that was named; None leaves it to the default.
        insecure_lan: Listen off loopback without TLS.
        more: Further words of `shardhub serve`.
    """

    host: str = "127.0.0.1"
    tls: Path | None = None
    insecure_lan: bool = False
    more: tuple[str, ...] = ()


def node_words(order: NodeOrder, options: NodeOptions, handed_on: Callable[[str], Path]) -> Sequence[str]:
    """The command of a node, without the program.

    Args:
        handed_on: The folder of a pipeline that was handed on, by its id.
    """
    deployment, capacity = order.deployment, order.deployment.capacity
    place = deployment.place
    if place == HANDED_ON and deployment.pipeline_id is not None:
        place = str(handed_on(deployment.pipeline_id))
    if place is None:
        raise FormatError(f"The order for {order.pipeline} names no place.")
    first, last = order.shards
    words = [
        *("serve", place),
        *option("stages", first if first == last else f"{first}-{last}"),
        *option("host", options.host),
        *option("port", 0),
        *option("max-sessions", capacity.max_sessions),
        *option("context", capacity.context),
        *option("kv-bits", capacity.kv_bits),
        *option("tls", options.tls),
        *switch("insecure-lan", options.insecure_lan),
    ]
    return [*words, *options.more]


def option(name: str, value: object) -> tuple[str, ...]:
    """An option of a command; no words if it has no value."""
    return () if value is None else (f"--{name}", str(value))


def switch(name: str, is_on: bool) -> tuple[str, ...]:
    """An option without a value."""
    return (f"--{name}",) if is_on else ()
