"""Loading a stage from shard folders: verified, proven under the installed mlx, with only its own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import mlx.core as mx
from mlx.utils import tree_flatten

from shardhub.checkpoint.checkpoint import verify_weight_file
from shardhub.errors import DoesNotFit, FormatError, ProofFailed, UnsupportedModel
from shardhub.manifest import Stage as StageDocument
from shardhub.memory_limits import limit_text, memory_left
from shardhub.model import poison
from shardhub.model.anatomy import Anatomy, examine
from shardhub.model.batching import rewind_limit
from shardhub.model.build import Blueprint
from shardhub.model.memory import HEADROOM, kv_cost, left_for_stage, memory_budget, quantized_kv_cost
from shardhub.model.metal import limit_metal
from shardhub.model.proof import Scenario, StageCut, prove_chain, trace_chain
from shardhub.model.selfcheck import batch_refusal
from shardhub.model.stage import Stage
from shardhub.model.trial import Trial
from shardhub.protocol import KvQuantization, StageFacts
from shardhub.shard import Shard, check_adjacent
from shardhub.sizes import size_text
from shardhub.splitting.contents import StageContents

_NOT_SHOWN_WHEN_SPLIT = (
    "When the model was split, sequences side by side were not shown to give what each gives alone: its twin gave "
    "something else, or a condition depends on a row's neighbours."
)
_NO_QUANTISED_BATCH = "mlx-lm has no batched form of quantised K and V."


# Least context that is chosen by memory: with fewer positions, conversations are too short.
LEAST_CONTEXT = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedStage:
    """A stage in memory.

    Attributes:
        stage: Runs its layers.
        facts: What it reports about itself.
        weight_bytes: Bytes of its own tensors.
        context: Most positions of a session: as requested, or as memory allows.
        kv_budget_bytes: Bytes left for KV caches.
        kv_bytes: Bytes of that budget that a session with a given number of positions takes.
        batch_refusal: Why sessions cannot run side by side; None if that is proven by graph and was tried with these
            weights.
        trial: Makes up inputs for the warm-up.
        is_published: Whether its shards' graphs are the published ones; otherwise they were proven anew here.
        rewind_limit: Most positions from which a session can go back.
    """

    stage: Stage
    facts: StageFacts
    weight_bytes: int
    context: int
    kv_budget_bytes: int
    kv_bytes: Callable[[int], int]
    batch_refusal: str | None
    trial: Trial
    is_published: bool
    rewind_limit: int


def load_stage(
    shards: Sequence[Shard],
    *,
    context: int,
    budget_bytes: int | None = None,
    kv: KvQuantization | None = None,
    may_be_less: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> LoadedStage:
    """Load adjacent shards as one stage; must be called in the thread that will run the stage.

    Args:
        shards: Shards from `read_shard`, in any order.
        context: Positions for which at least one session must have room.
        budget_bytes: Memory to stay within; the machine's budget by default.
        kv: How K and V are quantised.
        may_be_less: Whether to accept fewer positions if memory is short.
        progress: Called with what is being done.

    Raises:
        DoesNotFit: Weights and one session exceed the budget; nothing was loaded.
        IntegrityError: A weight file differs from the published one; MLX read none of its bytes.
        ProofFailed: Under the installed mlx and mlx-lm the stage would compute something else.
        UnsupportedModel: mlx-lm cannot build the model, or cannot run it with quantised K and V.
    """
    ordered = check_adjacent(shards)
    first, last = ordered[0].stage, ordered[-1].stage
    names = f"{ordered[0].name}" + (f" to {ordered[-1].name}" if len(ordered) > 1 else "")
    blueprint = Blueprint({k: v for k, v in ordered[0].config.items() if k != "shardhub"}, ordered[0].tensors)
    progress(f"checking the computation of {names}")
    with telling_versions(ordered[0]):
        anatomy = examine(blueprint, ordered[0].proof.chunks if ordered[0].proof is not None else None)
        _check_documents(ordered, anatomy)
        graph_hash, is_published = prove_loaded(blueprint, anatomy, ordered)
    refusal = _NO_QUANTISED_BATCH if kv is not None else unproven_batch(blueprint, anatomy, ordered)

    crossings_in = tuple(crossing.name for crossing in first.crossings_in)
    crossings_out = tuple(crossing.name for crossing in last.crossings_out)

    def made() -> Stage:
        model = blueprint.build(stand_in=poison.parameter)
        return Stage(model, anatomy, first.start, last.stop, crossings_in, crossings_out, kv=kv)

    weight_bytes = sum(ordered[0].tensors[name].size_bytes for name in _own_tensors(ordered))
    budget = memory_budget() if budget_bytes is None else budget_bytes
    # Uses a separate model object: kimi_k3 keeps what its first forward derives from weights, here placeholders.
    trial = Trial(blueprint, anatomy, first.start, first.crossings_in)
    kv_bytes = kv_cost(made(), trial) if kv is None else quantized_kv_cost(made(), trial)
    usable, left = int(budget * (1 - HEADROOM)), left_for_stage(memory_left())
    if may_be_less:
        usable = usable if left is None else min(usable, left)
        context = largest_context(kv_bytes, usable - weight_bytes, most=context)
    session_bytes = kv_bytes(context)
    # Independent of the given budget: beyond a limit the kernel kills the process without a message.
    if left is not None and weight_bytes + session_bytes > left:
        raise DoesNotFit(
            f"{names} does not fit into the memory that this process may use.",
            why=f"Weights {size_text(weight_bytes)} and KV cache {size_text(session_bytes)} for {context} positions "
            f"exceed {size_text(left)}, which its limits leave for them ({limit_text()}).",
            hint="Raise the limit (ulimit -v, a container's memory), serve fewer layers here, or lower `context`.",
        )
    if weight_bytes + session_bytes > usable:
        raise DoesNotFit(
            f"{names} does not fit on this machine.",
            why=f"Weights {size_text(weight_bytes)} and KV cache {size_text(session_bytes)} for {context} positions "
            f"exceed {size_text(usable)}, which is the memory budget of {size_text(budget)} less {HEADROOM:.0%}.",
            hint="Serve fewer layers here, lower `context`, or set `memory` if the budget is wrong.",
        )

    limit_metal(budget)
    weights: dict[str, mx.array] = {}
    files = [(shard, file) for shard in ordered for file in shard.stage.weight_files]
    for done, (shard, file) in enumerate(files):
        progress(f"verifying weight files: {done} of {len(files)}")
        verify_weight_file(shard.folder / file.name, file, shard.tensors)
        arrays = mx.load(str(shard.folder / file.name), format="safetensors")
        assert isinstance(arrays, dict)
        weights.update(arrays)
    progress(f"loading {size_text(weight_bytes)}")
    stage = made()
    stage.model.load_weights(list(weights.items()), strict=False)
    del weights
    parameters = dict(tree_flatten(stage.model.parameters()))
    mx.eval([parameters[name] for name in _own_tensors(ordered)])
    if refusal is None:
        progress("comparing sequences run together with each run alone")
        refusal = batch_refusal(stage, trial, first.crossings_in, first.dtype)
    facts = StageFacts(
        digests=tuple(shard.digest for shard in ordered),
        boundaries=(first.start, *(shard.stage.stop for shard in ordered)),
        num_layers=first.num_layers,
        config_digest=first.config_digest,
        graph_hash=graph_hash,
        dtype=first.dtype,
        hidden_size=blueprint.number("hidden_size", "d_model", "n_embd", "model_dim"),
        vocab_size=blueprint.vocab_size,
        crossings_in=first.crossings_in,
        kv_bits=kv.bits if kv else 0,
        kv_group_size=kv.group_size if kv else 0,
    )
    return LoadedStage(
        stage=stage,
        facts=facts,
        weight_bytes=weight_bytes,
        context=context,
        kv_budget_bytes=max(0, usable - weight_bytes),
        kv_bytes=kv_bytes,
        batch_refusal=refusal,
        trial=trial,
        is_published=is_published,
        rewind_limit=rewind_limit(stage.new_cache()),
    )


def prove_loaded(blueprint: Blueprint, anatomy: Anatomy, ordered: Sequence[Shard]) -> tuple[str, bool]:
    """Prove that the proof made at split time holds here.

    Each shard's graph is hashed again under this process's mlx, mlx-lm and device; if it differs, the whole model and
    the stages are traced here. Shards joined to one stage are proven to compute what they compute one after the other.

    Returns:
        The graph hash of the (joined) stage, and whether all its shards' graphs are the published ones.

    Raises:
        ProofFailed: The stage does not compute here what its layers compute in the whole model.
    """
    cuts = [stage_cut_of(shard.stage) for shard in ordered]
    is_published = True
    graph_hash: str | None = None
    for shard, cut in zip(ordered, cuts, strict=True):
        graph_hash = _graph_hash(blueprint, anatomy, cut)
        if graph_hash is not None and _is_as_published(shard, anatomy, graph_hash):
            continue
        is_published = False
        try:
            prove_chain(blueprint, anatomy, chain_around(cut, anatomy.num_layers))
        except ProofFailed as error:
            raise ProofFailed(
                f"{shard.folder.name} would not compute here what the whole model computes.",
                why=error.why,
                hint="Download the shard again from its publisher, or split the model again.",
            ) from error
    if graph_hash is None or len(cuts) > 1:
        graph_hash = trace_chain(blueprint, anatomy, [_joined(cuts)]).hash()
    if len(cuts) > 1 and trace_chain(blueprint, anatomy, cuts).hash() != graph_hash:
        raise ProofFailed(
            f"{ordered[0].name} to {ordered[-1].name} cannot run as one stage.",
            why="Joined into one stage, they compute something else than as separate stages.",
            hint="Serve them as separate nodes.",
        )
    return graph_hash, is_published


def _graph_hash(blueprint: Blueprint, anatomy: Anatomy, cut: StageCut) -> str | None:
    """The hash of a stage's graph here; None if it cannot be traced."""
    try:
        return trace_chain(blueprint, anatomy, [cut]).hash()
    except ProofFailed:
        return None


def _is_as_published(shard: Shard, anatomy: Anatomy, graph_hash: str) -> bool:
    """Whether a shard's graph here matches its proof.json."""
    published = shard.proof
    return published is not None and published.chunks == anatomy.chunks and published.graph_hash == graph_hash


def largest_context(kv_bytes: Callable[[int], int], budget_bytes: int, *, most: int) -> int:
    """The most positions whose KV cache fits, or the least useful number if not even that fits.

    Args:
        kv_bytes: Bytes that a session with a given number of positions takes; must not decrease.
        most: Upper limit of the result.
    """
    low, high = min(LEAST_CONTEXT, most), most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kv_bytes(middle) <= budget_bytes else (low, middle - 1)
    return low


@contextmanager
def telling_versions(shard: Shard) -> Iterator[None]:
    """Add to an error the versions with which a shard was split and those installed here, if they differ."""
    made, here = shard.proof, (version("mlx"), version("mlx-lm"))
    try:
        yield
    except (UnsupportedModel, FormatError) as error:
        if made is None or (made.mlx, made.mlx_lm) == here:
            raise
        raise type(error)(
            error.what,
            why=f"{shard.name} was split with mlx {made.mlx} and mlx-lm {made.mlx_lm}; "
            f"this machine has mlx {here[0]} and mlx-lm {here[1]}. {error.why}".strip(),
            hint=f"Install the versions it was split with (pip install mlx=={made.mlx} mlx-lm=={made.mlx_lm}), "
            "or split the model again with these.",
        ) from error


def unproven_batch(blueprint: Blueprint, anatomy: Anatomy, ordered: Sequence[Shard]) -> str | None:
    """Why sequences side by side are not proven to compute in this stage here what they compute in the whole model."""
    cuts = [stage_cut_of(shard.stage) for shard in ordered]
    joined = _joined(cuts)
    published = ordered[0].proof
    try:
        traced = trace_chain(blueprint, anatomy, [joined], Scenario.MERGED).hash()
        # The twin passes lengths that no graph shows, and of which only short ones are tried here.
        if any(shard.proof is None or shard.proof.batched_graph_hash is None for shard in ordered):
            return _NOT_SHOWN_WHEN_SPLIT
        if len(cuts) == 1 and published is not None and published.batched_graph_hash == traced:
            return None
        prove_chain(blueprint, anatomy, chain_around(joined, anatomy.num_layers), Scenario.MERGED)
    except (ProofFailed, UnsupportedModel) as error:
        return f"{error.what} {error.why}".strip()
    return None


def _joined(cuts: Sequence[StageCut]) -> StageCut:
    return StageCut(
        start=cuts[0].start,
        stop=cuts[-1].stop,
        crossings_in=cuts[0].crossings_in,
        crossings_out=cuts[-1].crossings_out,
    )


def stage_cut_of(stage: StageDocument | StageContents) -> StageCut:
    """The cut that a stage.json, or a stage's contents in a split, describes."""
    return StageCut(
        start=stage.start,
        stop=stage.stop,
        crossings_in=tuple(crossing.name for crossing in stage.crossings_in),
        crossings_out=tuple(crossing.name for crossing in stage.crossings_out),
    )


def chain_around(cut: StageCut, num_layers: int) -> list[StageCut]:
    """The chain of a stage and all layers before and after it."""
    chain = [cut]
    if cut.start > 0:
        chain.insert(0, StageCut(start=0, stop=cut.start, crossings_in=(), crossings_out=cut.crossings_in))
    if cut.stop < num_layers:
        chain.append(StageCut(start=cut.stop, stop=num_layers, crossings_in=cut.crossings_out, crossings_out=()))
    return chain


def _check_documents(ordered: Sequence[Shard], anatomy: Anatomy) -> None:
    """Check stage.json against mlx-lm's model."""
    for shard in ordered:
        stage = shard.stage
        if stage.num_layers != anatomy.num_layers:
            raise FormatError(
                f"{shard.folder.name}: stage.json and config.json disagree.",
                why=f"They state {stage.num_layers} and {anatomy.num_layers} layers.",
            )
        for crossing in (*stage.crossings_in, *stage.crossings_out):
            if anatomy.leaves.get(crossing.name) != crossing:
                raise FormatError(
                    f"{shard.folder.name}: crossing {crossing.name} differs from what the model passes on here.",
                    why=f"stage.json says {crossing.dtype} {list(crossing.shape)}, but the model passes on "
                    f"{anatomy.leaves.get(crossing.name)}.",
                    hint="Download the shard again from its publisher, or split the model again.",
                )
        names = [name for file in stage.weight_files for name in file.tensors]
        if unknown := [name for name in names if name not in shard.tensors]:
            raise FormatError(f"{shard.folder.name}: tensor {unknown[0]} is not in the model's catalogue.")


def _own_tensors(ordered: Sequence[Shard]) -> list[str]:
    return sorted({name for shard in ordered for file in shard.stage.weight_files for name in file.tensors})
