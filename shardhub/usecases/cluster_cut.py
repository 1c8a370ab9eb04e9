"""A plain model cut for the machines of a cluster: each reads its own layers, and one document says how they fit.

Nothing is published, and no machine reads the whole model. Whoever runs `up` knows from the source's headers which
weight files the stages have, and orders each of them from one machine. With the sha256 of all files the pipeline's
documents are written: the same stages, digests and id as a push by reference of the same cut would have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from shardhub.checkpoint.costs import model_costs
from shardhub.checkpoint.quantisation import Quantisation
from shardhub.errors import UnsupportedModel
from shardhub.hub.cache import Cache
from shardhub.hub.gather import gather
from shardhub.hub.hubs import named_hub
from shardhub.hub.make_files import make_files
from shardhub.hub.pinned_repo import PinnedRepo
from shardhub.hub.ranges import Patience
from shardhub.hub.traffic import Traffic
from shardhub.manifest import Manifest
from shardhub.naming import (
    CATALOGUE_FILE,
    CONFIG_FILE,
    MANIFEST_FILE,
    PROOF_FILE,
    RANGES_FILE,
    STAGE_FILE,
    check_model_name,
    handed_name,
)
from shardhub.parity import Numbers
from shardhub.planning.borders import Borders
from shardhub.resident.deployments import MAX_CONTEXT
from shardhub.setting_checks import check_settings
from shardhub.splitting.documents import pipeline_documents, shard_documents
from shardhub.splitting.file_order import FileDigests, FileOrder, OrderedFile, ordered
from shardhub.splitting.job import SplitJob, prepare
from shardhub.splitting.weight_layout import FileLayout
from shardhub.usecases.cut import load_dissection, specs
from shardhub.usecases.forwarding import fetch_of
from shardhub.usecases.parity import settle_numbers, twin_findings
from shardhub.usecases.pipeline_source import source_hub
from shardhub.usecases.places import base_name, hub, open_model
from shardhub.usecases.sizes import default_context
from shardhub.usecases.tokenizer import with_tokenizer
from shardhub.usecases.watcher import SILENT, Progress, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterCutSettings:
    """How a plain model is cut for a cluster.

    Attributes:
        name: Base name of its shards, by which the cluster knows it; None takes the model's.
        context: Positions of a session; None takes 8192, or the model's own limit if that is smaller.
        ignore_code: Accept a model whose repo has code of its own, and leave that code out.
        ignore_fields: Fields of config.json that mlx-lm never reads, and that are ignored.
        source_endpoint: URL of the Hub that the model is on; None takes the Hub of the model's URL, or HF_ENDPOINT's.
        quantisation: How the weights are quantised while they are read; None takes them as they are.
    """

    name: str | None = None
    context: int | None = None
    ignore_code: bool = False
    ignore_fields: tuple[str, ...] = ()
    source_endpoint: str | None = None
    quantisation: Quantisation | None = None

    def __post_init__(self) -> None:
        check_settings(self, context=(1, MAX_CONTEXT))
        if self.name is not None:
            check_model_name(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeFile:
    """A weight file with tensors that are computed, which one machine makes for all.

    Attributes:
        key: Digest of what it is made of.
    """

    key: str
    name: str
    size_bytes: int


class Candidate:
    """A plain model that may be cut for a cluster: its costs, and where it can be cut.

    Args:
        model: Its folder or Hub id.
        settings: How it is cut.
        watcher: Notified of the current activity.

    Attributes:
        model_name: Its folder or Hub id, as it was given.
        model: It, opened.
        name: Base name of its shards.
        context: Positions of a session.
        costs: Costs of its layers.
        borders: Where it can be cut.

    Raises:
        UnsupportedModel: It cannot be split.
        As `open_model`.
    """

    def __init__(self, model: str | Path, settings: ClusterCutSettings, watcher: Watcher = SILENT) -> None:
        self.model_name = str(model)
        opened = open_model(
            model,
            source_endpoint=settings.source_endpoint,
            ignore_code=settings.ignore_code,
            ignore_fields=settings.ignore_fields,
            quantisation=settings.quantisation,
            context=settings.context,
            watcher=watcher,
        )
        self.model = with_tokenizer(opened, ignore_code=settings.ignore_code, watcher=watcher)
        self.name = base_name(self.model, settings.name, watcher)
        checkpoint = self.model.checkpoint
        self.context = default_context(checkpoint.config, settings.context)
        self.costs = model_costs(checkpoint, self.context)
        watcher.doing("checking where the model can be cut")
        self._dissection = load_dissection()(checkpoint.config, specs(checkpoint))
        cuts = self._dissection.cuts()
        if len(cuts) != self.costs.num_layers - 1:
            raise UnsupportedModel(
                f"config.json states {self.costs.num_layers} layers, but mlx-lm runs {len(cuts) + 1}.",
                hint="Use a conversion of the model whose config.json is correct.",
            )
        self.borders = Borders(cuts=tuple(cuts), context=self.context)
        watcher.doing("")

    @property
    def is_in_folder(self) -> bool:
        """Whether it is on this machine alone."""
        return self.model.source.repo is None

    def cut(self, cuts: Sequence[int], watcher: Watcher = SILENT) -> ClusterCut:
        """Cut it before these layers, and prove the stages.

        Raises:
            ProofFailed, ParityFailed: The stages would not compute what the whole model computes.
            UsageError: Its Hub has no name in the user's settings.
        """
        watcher.doing("checking that the chain of stages computes what the whole model computes")
        checkpoint, source = self.model.checkpoint, self.model.source
        stages = self._dissection.stages(list(pairwise([0, *cuts, self.costs.num_layers])))
        contents = self._dissection.model()
        numbers = Numbers(not_run="each machine read its own layers")
        inexact = settle_numbers(
            numbers,
            None,
            where=checkpoint.where,
            stages=stages,
            allow_inexact=False,
            others=twin_findings(contents),
            watcher=watcher,
        )
        can_refer = source.repo is not None and not checkpoint.is_virtual
        job = prepare(
            checkpoint,
            contents,
            stages,
            Path(),  # only the names are used
            name=self.name,
            source=source,
            by_reference=can_refer,
            source_hub=source_hub(self.model) if can_refer else None,
        )
        watcher.doing("")
        return ClusterCut(replace(job, numbers=numbers, inexact=inexact))


class ClusterCut:
    """A plain model, cut for a cluster, of which no weights were read yet.

    Args:
        job: The split, by reference if every machine can read the source.

    Attributes:
        job: It.
    """

    def __init__(self, job: SplitJob) -> None:
        self.job = job

    def keys(self, index: int) -> dict[str, int]:
        """Keys of the weight files of a shard, with their sizes in bytes."""
        shard = self.job.shards[index]
        return {key: layout.size_bytes for key, layout in zip(shard.keys, shard.layouts, strict=True)}

    @property
    def _layouts(self) -> dict[str, FileLayout]:
        return {key: layout for shard in self.job.shards for key, layout in zip(shard.keys, shard.layouts, strict=True)}

    @property
    def made(self) -> tuple[MadeFile, ...]:
        """The weight files that have to be computed."""
        files = {
            key: MadeFile(key=key, name=layout.name, size_bytes=layout.size_bytes)
            for shard in self.job.shards
            for key, layout in zip(shard.keys, shard.layouts, strict=True)
            if (left := self.job.left(shard, layout)) is None or left.computed is not None
        }
        return tuple(files.values())

    def orders(self, machines: Mapping[int, str], known: Mapping[str, str] | None = None) -> dict[str, FileOrder]:
        """What each machine is to read, by its name; a file that several stages have is read by one machine.

        Args:
            machines: The machine of each shard, by index.
            known: sha256 of files that were read before, by key; they are not read again.
        """
        made, hub = {file.key for file in self.made}, self.job.source_hub
        taken = {*(known or {}), *made}
        files: dict[str, list[OrderedFile]] = {}
        for shard in self.job.shards:
            for left in self.job.left_files(shard):
                if left.key not in taken:
                    taken.add(left.key)
                    files.setdefault(machines[shard.index], []).append(ordered(left))
        return {machine: FileOrder(source=self.job.source, files=tuple(own), hub=hub) for machine, own in files.items()}

    def make(self, cache: Cache, watcher: Watcher = SILENT) -> FileDigests:
        """Compute the weight files that have to be, into this machine's cache; those that are there are kept.

        Raises:
            As `make_files`.
        """
        made = {file.key for file in self.made}
        layouts = {key: layout for key, layout in self._layouts.items() if key in made}
        total, done = sum(layout.size_bytes for layout in layouts.values()), 0

        def count(name: str, size_bytes: int) -> None:
            nonlocal done
            done += size_bytes
            watcher.progress(Progress(activity="copying", item=name, done=done, total=total))

        return make_files(self.job.checkpoint, self.job.contents.computed, layouts, cache, count)

    def assemble(self, digests: Mapping[str, str]) -> AssembledPipeline:
        """Make the pipeline's documents, once the sha256 of every weight file is known.

        Args:
            digests: sha256 of the weight files, by key.

        Raises:
            DigestMismatch: A file of the tokenizer changed meanwhile.
        """
        job = self.job
        stages = [job.stage(shard, digests) for shard in job.shards]
        manifest = job.manifest([stage.digest for stage in stages])
        of_pipeline = pipeline_documents(job, manifest)
        documents = {name: of_pipeline[name] for name in (MANIFEST_FILE, *manifest.files)}
        documents[CATALOGUE_FILE] = job.catalogue
        for shard, stage in zip(job.shards, stages, strict=True):
            of_shard = shard_documents(job, shard, stage, beside=())
            documents.setdefault(CONFIG_FILE, of_shard[CONFIG_FILE])
            own = {name: of_shard[name] for name in (STAGE_FILE, PROOF_FILE, RANGES_FILE) if name in of_shard}
            documents |= {handed_name(shard.index, name): data for name, data in own.items()}
        return AssembledPipeline(manifest=manifest, documents=documents)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembledPipeline:
    """A pipeline that was cut for a cluster.

    Attributes:
        documents: The files of its folder by name: its own, and those of its shards without weights.
    """

    manifest: Manifest
    documents: Mapping[str, bytes]


def read_files(
    order: FileOrder, *, cache: Cache, watcher: Watcher = SILENT, traffic: Traffic | None = None
) -> FileDigests:
    """Read the weight files that are ordered from this machine into its cache; a killed run is continued by another.

    Raises:
        UsageError: The source is on a Hub that is not known here.
        As `gather`.
    """
    repo, commit = str(order.source.repo), str(order.source.commit)
    api = hub() if order.hub is None else named_hub(order.hub)
    source = PinnedRepo(api, repo, commit, Patience(notice=watcher.note))
    return gather(source, order.files, cache, notice=watcher.note, progress=fetch_of(watcher), traffic=traffic)
