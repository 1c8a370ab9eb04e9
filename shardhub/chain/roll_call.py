"""Which of the nodes that were named a chain begins with: those that answer, as soon as they serve every stage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shardhub.chain.assignment import assign_stages, stages_text
from shardhub.chain.links import PLAIN_DIALER
from shardhub.chain.stage_link import Dialer
from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import AccessError, ChainError, HandshakeError, NodeLoading, RouteError, ShardhubError, UsageError
from shardhub.manifest import Manifest
from shardhub.protocol import Description

# As long as a large stage takes to be verified and loaded from a slow disk.
LOADING_S = 1800.0
# How soon a node that is loading is asked again.
_AGAIN_S = 1.0
# Of the addresses that do not answer, in one message.
_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RollCall:
    """Who answered.

    Attributes:
        nodes: Address and description of the nodes to begin with, in the order they were named.
        absent: The others, and why each is not used.
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
    dialer: Dialer = PLAIN_DIALER,
    clock: Clock = SYSTEM_CLOCK,
) -> RollCall:
    """Ask nodes what they serve. Whoever does not answer is left out where the others serve every stage.

    Nodes that are loading are waited for while they may serve what is missing.

    Args:
        manifest: The pipeline's.
        addresses: Any order.
        is_here: Whether a stage can run in this process.
        progress: Told who is waited for.
        loading_s: How long nodes that load are waited for.
        dialer: How nodes are reached.

    Raises:
        RouteError: Nobody serves a stage.
        AccessError: A stage is missing, and a node does not let this machine in.
        HandshakeError: A stage is missing, and a node serves something else.
        ChainError: None of the nodes answers.
        AddressError: One must not be reached like that.
    """
    began_at = clock.now()
    described: dict[str, Description] = {}
    absent: dict[str, ShardhubError] = {}
    while True:
        asked = [address for address in addresses if address not in described]
        answers = await asyncio.gather(*(_ask(manifest, address, dialer) for address in asked), return_exceptions=True)
        for address, answer in zip(asked, answers, strict=True):
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
        if nobody := [index for index in missing if not is_here(index)]:
            raise _nobody(manifest, nobody, len(described), absent)
        nodes = tuple((address, described[address]) for address in addresses if address in described)
        return RollCall(nodes=nodes, absent=absent)


async def _ask(manifest: Manifest, address: str, dialer: Dialer) -> Description:
    description = await dialer.describe(address)
    assign_stages(manifest, [(address, description)], range(len(manifest.stages)))
    return description


def _nobody(
    manifest: Manifest, nobody: Sequence[int], num_nodes: int, absent: Mapping[str, ShardhubError]
) -> ShardhubError:
    """Why the chain cannot begin: what a node refuses or serves instead, else who does not answer, else who lacks."""
    for kind in (AccessError, HandshakeError):
        refusal = next((error for error in absent.values() if isinstance(error, kind)), None)
        if refusal is not None:
            return refusal
    if absent and not num_nodes and len(absent) == 1:
        return next(iter(absent.values()))
    why = "; ".join(f"{error.what} {error.why}".strip() for error in list(absent.values())[:_SHOWN])
    more = f"; and {len(absent) - _SHOWN} more do not answer" if len(absent) > _SHOWN else ""
    return RouteError(
        f"Nobody serves stage {stages_text(manifest, nobody)}.",
        why=f"{why}{more}" if why else f"{num_nodes} of {len(manifest.stages)} stages' nodes answer.",
        hint="Start it somewhere with `shardhub serve`, and name its address with `node`.",
    )


def is_passing(error: ShardhubError) -> bool:
    """Whether a chain that could not begin may begin later, when nodes have come or gone."""
    return isinstance(error, ChainError)
