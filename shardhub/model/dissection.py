"""What a cut puts into each shard: decided from upstream's own model, proven before a byte is copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from shardhub import __version__
from shardhub.model.anatomy import Anatomy, examine
from shardhub.model.build import Blueprint, final_names, hidden_dtype, layer_of_tensors
from shardhub.model.proof import prove_chain, trace_stage
from shardhub.model.reach import Needs, describe, find_needs, stage_cut, stage_tensors
from shardhub.splitting.contents import ModelContents, StageContents, Versions
from shardhub.tensors import TensorSpec


class Dissection:
    """A model taken apart without its weights.

    Args:
        config: The model's config.json.
        stored: Headers of its checkpoint.

    Raises:
        UnsupportedModel: It cannot be built, cut or proven; the message says why.
    """

    def __init__(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> None:
        self._stored_names = final_names(config, stored)
        tensors = {name: stored[source] for name, source in self._stored_names.items()}
        self.blueprint = Blueprint(config, tensors)
        self.anatomy: Anatomy = examine(self.blueprint)
        self._needs: Needs = find_needs(self.blueprint, self.anatomy)

    def model(self) -> ModelContents:
        """Facts about the whole model that shards record."""
        return ModelContents(
            num_layers=self.anatomy.num_layers,
            dtype=hidden_dtype(self.blueprint.tensors),
            stored_names=self._stored_names,
            layer_of=layer_of_tensors(self.blueprint.build()),
            versions=Versions(
                shardhub=__version__,
                mlx=version("mlx"),
                mlx_lm=version("mlx-lm"),
                device=str(mx.default_device()),
            ),
        )

    def stages(self, ranges: Sequence[tuple[int, int]]) -> list[StageContents]:
        """Contents of the stages with these half-open layer ranges, which cover all layers in order.

        Raises:
            ProofFailed: The chained stages would not compute what the whole model computes.
            UnsupportedModel: A cut is impossible.
        """
        cuts = [stage_cut(start, stop, self.anatomy, self._needs) for start, stop in ranges]
        prove_chain(self.blueprint, self.anatomy, cuts)
        return [
            StageContents(
                start=cut.start,
                stop=cut.stop,
                tensors=tuple(sorted(stage_tensors(cut.start, cut.stop, self.anatomy, self._needs))),
                crossings_in=describe(cut.crossings_in, self.anatomy),
                crossings_out=describe(cut.crossings_out, self.anatomy),
                graph_hash=trace_stage(self.blueprint, self.anatomy, [cut]).hash(),
                proof_chunks=self.anatomy.chunks,
            )
            for cut in cuts
        ]
