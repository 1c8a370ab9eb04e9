"""Deciding what a cut puts into each shard from upstream's own model, proven before any byte is copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from shardhub.errors import ProofFailed, UnsupportedModel
from shardhub.manifest import MAX_REMARK, MAX_REMARKS
from shardhub.model.anatomy import Anatomy, examine
from shardhub.model.build import RUN_WHOLE, Blueprint, hidden_dtype, layer_of_tensors
from shardhub.model.conversion import Conversion
from shardhub.model.cuts import cut_facts
from shardhub.model.probing import Probing, Unreached, find_chunks
from shardhub.model.proof import Scenario, StageCut, prove_apart, prove_chain, trace_chain
from shardhub.model.reach import Needs, describe, find_needs, stage_cut, stage_tensors
from shardhub.model.rowwise import row_refusal
from shardhub.model.twin import Twin, run_twin
from shardhub.planning.borders import CutFacts
from shardhub.splitting.contents import ModelContents, StageContents, Versions
from shardhub.tensors import TensorSpec
from shardhub.version import __version__


class Dissection:
    """The analysis of a model without its weights.

    Args:
        config: The model's config.json.
        stored: Headers of its checkpoint.

    Raises:
        UnsupportedModel: The model cannot be built, cut or proven; the message says why.
    """

    def __init__(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> None:
        self.conversion = Conversion(config, stored)
        self.blueprint = Blueprint(config, self.conversion.tensors)
        self.blueprint.build()
        self._known = ["its tensors match config.json"]
        with _knowing(self._known):
            self.probing: Probing = find_chunks(self.blueprint)
            self.anatomy: Anatomy = examine(self.blueprint, self.probing.chunks)
            _refuse_unreached(self.probing)
            self._known.append(f"each of its {self.anatomy.num_layers} layers is run exactly once, in order")
            self._needs: Needs = find_needs(self.blueprint, self.anatomy)
        self.twin = Twin(not_run="nothing was split")

    def model(self) -> ModelContents:
        """The facts about the whole model that shards record."""
        return ModelContents(
            num_layers=self.anatomy.num_layers,
            dtype=hidden_dtype(self.blueprint.tensors),
            stored_names=self.conversion.copied,
            layer_of=layer_of_tensors(self.blueprint.build()),
            versions=Versions(
                shardhub=__version__,
                mlx=version("mlx"),
                mlx_lm=version("mlx-lm"),
                device=str(mx.default_device()),
            ),
            computed=self.conversion if self.conversion.specs else None,
            twin=self.twin,
            unreached=tuple(map(_remark, self.probing.unreached[:MAX_REMARKS])),
        )

    def cuts(self) -> tuple[CutFacts, ...]:
        """Facts about the cut before each layer but the first, in order."""
        return cut_facts(self.anatomy, self._needs)

    def prove(self, ranges: Sequence[tuple[int, int]]) -> list[StageCut]:
        """Prove that the chain of stages computes what the whole model computes.

        Args:
            ranges: Half-open layer ranges of the stages; in order they cover all layers.

        Raises:
            ProofFailed: The chain computes something else.
            UnsupportedModel: A cut is impossible.
        """
        cuts = [stage_cut(start, stop, self.anatomy, self._needs) for start, stop in ranges]
        with _knowing(self._known):
            prove_chain(self.blueprint, self.anatomy, cuts)
        return cuts

    def batch_refusal(self, cuts: Sequence[StageCut]) -> str | None:
        """Why the chain is not proven for sequences side by side in one batch; None if it is."""
        try:
            if (refusal := row_refusal(self.blueprint, self.anatomy.chunks)) is not None:
                return refusal
            prove_chain(self.blueprint, self.anatomy, cuts, Scenario.MERGED)
        except UnsupportedModel as error:
            return f"{error.what} {error.why}".strip()
        return None

    def stages(self, ranges: Sequence[tuple[int, int]]) -> list[StageContents]:
        """Contents of the stages with these half-open layer ranges, proven by graph and checked by numbers on a twin.

        The twin's result is stored in `twin`; the caller must refuse stages that differ there.

        Raises:
            As `prove`.
        """
        cuts = [stage_cut(start, stop, self.anatomy, self._needs) for start, stop in ranges]
        with _knowing(self._known):
            alone = prove_apart(self.blueprint, self.anatomy, cuts)
        self.twin = run_twin(self.blueprint, self.probing, [cut.start for cut in cuts[1:]])
        batched: list[str] | list[None] = [None] * len(cuts)
        with suppress(UnsupportedModel):
            # Numbers prove more than conditions: deepseek_v32 decides by the padded length, with the same result.
            is_open = self.twin.batch_refusal is None and (self.twin.not_run or self.twin.is_cut_short)
            if is_open and (refusal := row_refusal(self.blueprint, self.anatomy.chunks)):
                self.twin = replace(self.twin, batch_refusal=refusal)
            if self.twin.batch_refusal is None:
                batched = self._batched(cuts)
        return [self._contents(*each) for each in zip(cuts, alone, batched, strict=True)]

    def _batched(self, cuts: Sequence[StageCut]) -> list[str]:
        """Prove the stages for sequences side by side, and return their graph hashes.

        Raises:
            UnsupportedModel: The proof fails, or the caches cannot be merged.
        """
        crossings = [self.anatomy.leaves[name] for cut in cuts for name in cut.crossings_out]
        if all(crossing is not None and crossing.shape for crossing in crossings):
            return prove_apart(self.blueprint, self.anatomy, cuts, Scenario.MERGED)
        # A value per sequence becomes one per row here, which only stages in one process pass on.
        prove_chain(self.blueprint, self.anatomy, cuts, Scenario.MERGED)
        return [trace_chain(self.blueprint, self.anatomy, [cut], Scenario.MERGED).hash() for cut in cuts]

    def _contents(self, cut: StageCut, graph_hash: str, batched_graph_hash: str | None) -> StageContents:
        return StageContents(
            start=cut.start,
            stop=cut.stop,
            tensors=tuple(sorted(stage_tensors(cut.start, cut.stop, self.anatomy, self._needs))),
            crossings_in=describe(cut.crossings_in, self.anatomy),
            crossings_out=describe(cut.crossings_out, self.anatomy),
            graph_hash=graph_hash,
            batched_graph_hash=batched_graph_hash,
            proof_chunks=self.anatomy.chunks,
        )


def _remark(unreached: Unreached) -> str:
    """Format a condition for a document: its operands may be any text of a configuration."""
    return str(unreached).encode("ascii", "replace").decode()[:MAX_REMARK]


def _refuse_unreached(probing: Probing) -> None:
    """Refuse a model with a condition of which one outcome was never seen, though some position may reach it."""
    if still := [each for each in probing.unreached if each.is_open]:
        raise UnsupportedModel(
            f"Part of the model's code was never reached: {still[0]}.",
            why="The condition there changes from step to step, so some step may reach it, but none of the steps "
            "tried did.",
            hint=RUN_WHOLE,
        )


@contextmanager
def _knowing(facts: Sequence[str]) -> Iterator[None]:
    """Add to an error what was found to be right with the model, and how to run it unsplit."""
    try:
        yield
    except ProofFailed:
        raise
    except UnsupportedModel as error:
        raise type(error)(
            error.what,
            why=f"{error.why} These checks passed: {'; '.join(facts)}.".strip(),
            hint=error.hint or RUN_WHOLE,
        ) from error
