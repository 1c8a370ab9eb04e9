"""Which stage runs where: a pure decision from the manifest and the nodes' descriptions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shardhub.errors import HandshakeError, OtherPipeline, RouteError
from shardhub.manifest import Manifest
from shardhub.protocol import PROTOCOL_VERSIONS, Description, StageFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStages:
    """Stages `[first, last]` of the manifest run on a node."""

    address: str
    description: Description
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalStages:
    """Stages `[first, last]` of the manifest run in this process."""

    first: int
    last: int


Assignment = NodeStages | LocalStages


def assign_stages(
    manifest: Manifest, nodes: Sequence[tuple[str, Description]], local: Collection[int] = ()
) -> tuple[Assignment, ...]:
    """Order the nodes by the layers they serve, and fill gaps with stages of this process.

    Nodes that serve the same layers are replicas, and share the sessions.

    Args:
        manifest: The pipeline.
        nodes: Address and description of each node, in any order.
        local: Indices of stages that may run here.

    Raises:
        HandshakeError: A node serves something else, or speaks another protocol.
        RouteError: A stage has no server, or nodes serve layers that overlap in part.
    """
    assignments: list[Assignment] = [_node_stages(manifest, address, description) for address, description in nodes]
    served: dict[int, NodeStages] = {}
    for assigned in assignments:
        assert isinstance(assigned, NodeStages)
        for index in range(assigned.first, assigned.last + 1):
            other = served.get(index)
            if other is not None and (other.first, other.last) != (assigned.first, assigned.last):
                raise RouteError(
                    f"{other.address} and {assigned.address} both serve stage {index}, but not the same layers.",
                    why=f"They serve layers {_layers(other)} and {_layers(assigned)}; replicas must serve the same "
                    "layers.",
                    hint="Give only one of them with `nodes`.",
                )
            if other is not None and other.description.boot_id == assigned.description.boot_id:
                raise RouteError(
                    f"{other.address} and {assigned.address} are the same node.", hint="Name it only once with `nodes`."
                )
            served[index] = assigned
    missing = [index for index in range(len(manifest.stages)) if index not in served]
    if unserved := [index for index in missing if index not in local]:
        num = len(manifest.stages)
        serve = "one node serves others" if len(nodes) == 1 else f"{len(nodes)} nodes serve others"
        raise RouteError(
            f"No node serves {stages_text(manifest, unserved)}.",
            why=f"The pipeline has {num} stages; {serve}."
            if nodes
            else f"The pipeline has {num} stages, and no node serves any of them.",
            hint="Start a node for it with `shardhub serve`, and give the node's address with `nodes`.",
        )
    for index in missing:
        before = assignments[-1] if assignments else None
        if isinstance(before, LocalStages) and before.last == index - 1:
            assignments[-1] = LocalStages(first=before.first, last=index)
        else:
            assignments.append(LocalStages(first=index, last=index))
    return tuple(sorted(assignments, key=lambda assigned: assigned.first))


def stages_of(manifest: Manifest, facts: StageFacts) -> LocalStages:
    """Return the manifest's stages that a running chain's link serves, as stages of this process."""
    digests = [stage.digest for stage in manifest.stages]
    first = digests.index(facts.digests[0])
    return LocalStages(first=first, last=first + len(facts.digests) - 1)


def _node_stages(manifest: Manifest, address: str, description: Description) -> NodeStages:
    facts = description.stage
    if not set(PROTOCOL_VERSIONS) & set(description.protocol_versions):
        raise HandshakeError(
            f"{address} uses another protocol version.",
            why=f"It supports versions {list(description.protocol_versions)}, and this shardhub supports "
            f"{list(PROTOCOL_VERSIONS)}.",
            hint="Upgrade shardhub on both machines.",
        )
    digests = [stage.digest for stage in manifest.stages]
    if unknown := [digest for digest in facts.digests if digest not in digests]:
        if is_same_model(manifest, description):
            raise OtherPipeline(
                f"{address} serves a shard of another pipeline: another version or cut of {manifest.name}.",
                why=f"Its stage digest is {unknown[0][:12]}, which this manifest does not name, although the model's "
                "configuration is the same. The Hub probably has a newer version than the one that one of the two "
                "was started with.",
                hint="Restart the older of the two, that node or this command, to use the Hub's newest version. To "
                "stay with an older version, name its commit on both sides: PIPELINE@COMMIT (`shardhub ls` shows "
                "commits).",
                digests=facts.digests,
                start=facts.boundaries[0],
            )
        raise OtherPipeline(
            f"{address} serves a shard of another pipeline.",
            why=f"Its stage digest is {unknown[0][:16]}..., the manifest {manifest.name!r} has "
            f"{', '.join(digest[:16] + '...' for digest in digests)}.",
            hint="Serve a shard that this manifest names, or give the manifest of that node's pipeline.",
            digests=facts.digests,
            start=facts.boundaries[0],
            is_same_model=False,
        )
    first = digests.index(facts.digests[0])
    last = first + len(facts.digests) - 1
    expected = (manifest.stages[first].start, *(stage.stop for stage in manifest.stages[first : last + 1]))
    if tuple(digests[first : last + 1]) != facts.digests or expected != facts.boundaries:
        raise HandshakeError(
            f"{address} does not serve adjacent stages of this manifest.",
            why=f"Its layer boundaries are {list(facts.boundaries)}, and the manifest's are {list(expected)}.",
        )
    if facts.config_digest != manifest.config_digest or facts.num_layers != manifest.num_layers:
        raise HandshakeError(
            f"{address} serves another configuration of the model.",
            why=f"Its config digest is {facts.config_digest[:16]}..., and the manifest's is "
            f"{manifest.config_digest[:16]}....",
        )
    return NodeStages(address=address, description=description, first=first, last=last)


def stages_text(manifest: Manifest, indices: Sequence[int]) -> str:
    """Name stages and their layers, for messages."""
    texts = [
        f"{index} (layers {manifest.stages[index].start} to {manifest.stages[index].stop - 1})" for index in indices
    ]
    return f"{'stage' if len(texts) == 1 else 'stages'} {', '.join(texts)}"


def is_same_model(manifest: Manifest, description: Description) -> bool:
    """Whether a node serves layers of the manifest's model, whatever their version or cut."""
    facts = description.stage
    return facts.config_digest == manifest.config_digest and facts.num_layers == manifest.num_layers


def _layers(assigned: NodeStages) -> str:
    return f"[{assigned.description.stage.start}, {assigned.description.stage.stop})"
