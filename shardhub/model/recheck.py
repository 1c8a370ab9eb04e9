"""Repeating the graph proof of shards with this machine's mlx and mlx-lm, and comparing it with their proof.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import mlx.core as mx

from shardhub.manifest import Proof
from shardhub.model.anatomy import Anatomy, examine
from shardhub.model.build import Blueprint
from shardhub.model.load import chain_around, stage_cut_of, telling_versions
from shardhub.model.proof import Scenario, prove_chain, trace_chain
from shardhub.shard import Shard
from shardhub.version import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardGraph:
    """A shard's graph on this machine.

    Attributes:
        hashes: Hashes traced now: for one sequence, and for two side by side if proof.json has that.
        published: The hashes in its proof.json; empty without one.
        is_comparable: Whether both were made with the same versions, device and chunks, and so must be equal.
        made_by: Versions that made proof.json.
    """

    hashes: tuple[str, ...]
    published: tuple[str, ...]
    is_comparable: bool
    made_by: str

    @property
    def agrees(self) -> bool:
        """Whether proof.json is consistent with the graph traced here."""
        return self.published == self.hashes or not self.is_comparable


def open_blueprint(shard: Shard) -> Blueprint:
    """The whole model of a shard, without its weights."""
    return Blueprint({key: value for key, value in shard.config.items() if key != "shardhub"}, shard.tensors)


def prove_again(shards: Sequence[Shard], *, is_whole: bool) -> list[ShardGraph]:
    """Prove that the stages compute here what the whole model computes, and trace each alone.

    Args:
        shards: Shards of one pipeline, in order.
        is_whole: Whether these are all its stages; otherwise each is proven between all other layers.

    Raises:
        ProofFailed: The stages compute something else.
        UnsupportedModel: mlx-lm cannot build or trace the model.
    """
    with telling_versions(shards[0]):
        return _prove_again(shards, is_whole=is_whole)


def _prove_again(shards: Sequence[Shard], *, is_whole: bool) -> list[ShardGraph]:
    blueprint = open_blueprint(shards[0])
    anatomy = examine(blueprint, shards[0].proof.chunks if shards[0].proof is not None else None)
    cuts = [stage_cut_of(shard.stage) for shard in shards]
    claims = [shard.proof is not None and shard.proof.batched_graph_hash is not None for shard in shards]
    for chain in [cuts] if is_whole else [chain_around(cut, anatomy.num_layers) for cut in cuts]:
        prove_chain(blueprint, anatomy, chain)
        if any(claims):
            prove_chain(blueprint, anatomy, chain, Scenario.MERGED)
    checks = []
    for shard, cut, is_batched in zip(shards, cuts, claims, strict=True):
        hashes = [trace_chain(blueprint, anatomy, [cut]).hash()]
        if is_batched:
            hashes.append(trace_chain(blueprint, anatomy, [cut], Scenario.MERGED).hash())
        checks.append(_against(shard.proof, tuple(hashes), anatomy))
    return checks


def _against(proof: Proof | None, hashes: tuple[str, ...], anatomy: Anatomy) -> ShardGraph:
    if proof is None:
        return ShardGraph(hashes=hashes, published=(), is_comparable=False, made_by="")
    here = (__version__, version("mlx"), version("mlx-lm"), str(mx.default_device()), anatomy.chunks)
    there = (proof.shardhub, proof.mlx, proof.mlx_lm, proof.device, proof.chunks)
    return ShardGraph(
        hashes=hashes,
        published=tuple(digest for digest in (proof.graph_hash, proof.batched_graph_hash) if digest is not None),
        is_comparable=here == there,
        made_by=f"shardhub {proof.shardhub}, mlx {proof.mlx}, mlx-lm {proof.mlx_lm}",
    )
