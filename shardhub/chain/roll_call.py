"""The roll call: finds which of the given nodes answer, and waits until those that load can complete the chain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shardhub.chain.assignment import assign_stages, stages_text
from shardhub.chain.links import PLAIN_DIALER
from shardhub.chain.stage_link import Dialer
from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import (
    AccessError,
    ChainError,
    HandshakeError,
    NodeLoading,
    OtherPipeline,
    RouteError,
    ShardhubError,
    UsageError,
)
from shardhub.manifest import Manifest
from shardhub.protocol import Description

# Enough to verify and load a large stage from a slow disk.
LOADING_S = 1800.0
# Interval at which a loading node is asked again.
_AGAIN_S = 1.0
# Most silent addresses listed in one message.
_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RollCall:
    """The result of a roll call.

    Attributes:
        nodes: Address and description of the nodes to start with, in the order they were named.
        absent: The other nodes, and why each is not used.
    """

    nodes: tuple[tuple[str, Description], ...]
    absent: Mapping[str, ShardhubError]


async def roll_call(
    manifest: Manifest,
    addresses: Sequence[str],
    *,
    is_here: Callable[[int], bool] = lambda index: False,
    progress: Callable[[str], None] = lambda _: None,
    loading_s: float = LOADING_S,
    mixed: bool = False,
    dialer: Dialer = PLAIN_DIALER,
    clock: Clock = SYSTEM_CLOCK,
) -> RollCall:
    """Ask nodes what they serve, leaving out those that do not answer if the others serve every stage.

    Loading nodes are waited for while they may serve a missing stage.

    Args:
        manifest: The pipeline's manifest.
        addresses: Addresses of nodes, in any order.
        is_here: Returns whether a stage can run in this process.
        progress: Called with a description of what is waited for.
        loading_s: How long to wait for loading nodes.
        mixed: Whether the addresses are those of several pipelines; nodes of the others are then left out.
        dialer: Connects to nodes.

    Raises:
        RouteError: A stage has no server.
        AccessError: A stage is missing, and a node refuses this machine.
        HandshakeError: A stage is missing, and a node serves something else.
        ChainError: No node answers.
        AddressError: A node must not be reached without TLS.
    """
    began_at = clock.now()
    described: dict[str, Description] = {}
    absent: dict[str, ShardhubError] = {}
    while True:
        pending = [address for address in addresses if address not in described]
        answers = await asyncio.gather(
            *(_ask(manifest, address, dialer) for address in pending), return_exceptions=True
        )
        for address, answer in zip(pending, answers, strict=True):
            if isinstance(answer, Description):
                described[address] = answer
                absent.pop(address, None)
            elif isinstance(answer, ShardhubError) and not isinstance(answer, UsageError):
                absent[address] = answer
            else:
                raise answer
        digests = {digest for description in described.values() for digest in description.stage.digests}
        missing = [index for index, stage in enumerate(manifest.stages) if stage.digest not in digests]
        loading = [address for address, error in absent.items() if isinstance(error, NodeLoading)]
        waited_s = clock.now() - began_at
        if missing and loading and waited_s < loading_s:
            progress(f"waiting for {' and '.join(loading)} to load: {waited_s:.0f} s")
            await clock.sleep(_AGAIN_S)
            continue
        if unserved := [index for index in missing if not is_here(index)]:
            raise _unserved(manifest, unserved, len(described), absent, mixed=mixed)
        if mixed:
            absent = {address: error for address, error in absent.items() if not isinstance(error, OtherPipeline)}
        nodes = tuple((address, described[address]) for address in addresses if address in described)
        return RollCall(nodes=nodes, absent=absent)


async def _ask(manifest: Manifest, address: str, dialer: Dialer) -> Description:
    description = await dialer.describe(address)
    assign_stages(manifest, [(address, description)], range(len(manifest.stages)))
    return description


def _unserved(
    manifest: Manifest, unserved: Sequence[int], num_nodes: int, absent: Mapping[str, ShardhubError], *, mixed: bool
) -> ShardhubError:
    """Why the chain cannot start: a node refuses, serves something else or does not answer, or a stage is missing."""
    for kind in (AccessError, HandshakeError):
        refusals = (error for error in absent.values() if isinstance(error, kind))
        refusal = next((error for error in refusals if not (mixed and isinstance(error, OtherPipeline))), None)
        if refusal is not None:
            return refusal
    if absent and not num_nodes and len(absent) == 1:
        return next(iter(absent.values()))
    why = "; ".join(_reason(error, mixed=mixed) for error in list(absent.values())[:_SHOWN])
    more = f"; {len(absent) - _SHOWN} more do not answer" if len(absent) > _SHOWN else ""
    return RouteError(
        f"No node serves {stages_text(manifest, unserved)}.",
        why=f"{why}{more}" if why else f"Nodes of {num_nodes} of the {len(manifest.stages)} stages answer.",
        hint="Start a node for it with `shardhub serve`, and give the node's address with `nodes`.",
    )


def _reason(error: ShardhubError, *, mixed: bool) -> str:
    """Why a node is not used. A node of another pipeline needs no explanation where several are served."""
    return error.what if mixed and isinstance(error, OtherPipeline) else f"{error.what} {error.why}".strip()


def is_passing(error: ShardhubError) -> bool:
    """Whether a chain that could not start may start later, after nodes have come or gone."""
    return isinstance(error, ChainError)
