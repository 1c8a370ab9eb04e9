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
        neighbours: Returns addresses of residents, which are asked for weight files before a Hub is.
    """

    host: str = "127.0.0.1"
    tls: Path | None = None
    insecure_lan: bool = False
    more: tuple[str, ...] = ()
    neighbours: Callable[[], Sequence[str]] = tuple


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
    words = ["serve", place, "--stages", str(first) if first == last else f"{first}-{last}"]
    words += ["--host", options.host, "--port", "0", "--max-sessions", str(capacity.max_sessions)]
    if capacity.context is not None:
        words += ["--context", str(capacity.context)]
    if capacity.kv_bits is not None:
        words += ["--kv-bits", str(capacity.kv_bits)]
    if options.tls is not None:
        words += ["--tls", str(options.tls)]
    if options.insecure_lan:
        words.append("--insecure-lan")
    for address in options.neighbours():
        words += ["--neighbour", address]
    return [*words, *options.more]
