"""Publishing a model's stages on a Hub, each in a repo of its own, and deleting them again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from shardhub.checkpoint.quantisation import Quantisation
from shardhub.errors import UsageError
from shardhub.hub.calls import HubCalls
from shardhub.hub.hubs import source_api
from shardhub.hub.push_decisions import Action
from shardhub.hub.push_plan import PushPlan
from shardhub.hub.push_weights import check_weights
from shardhub.hub.reference import parse_reference, parse_source
from shardhub.hub.unpublish import Removal, find_removal, remove
from shardhub.parity import Numbers
from shardhub.setting_checks import check_argument, check_settings
from shardhub.source_ranges import check_can_refer
from shardhub.splitting.job import SplitJob, prepare
from shardhub.usecases.cut import Cut, decide_and_prove
from shardhub.usecases.kept_parity import KeptParity
from shardhub.usecases.parity import ParitySettings, measure_split, settle_numbers, twin_findings
from shardhub.usecases.pipeline_source import source_hub, warn_of_access
from shardhub.usecases.places import base_name, hub, open_model
from shardhub.usecases.push import Publication, Push, PushSettings, push_progress, source_info
from shardhub.usecases.tokenizer import with_tokenizer
from shardhub.usecases.watcher import SILENT, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSettings(PushSettings):
    """Where and how a model's stages are published: as `PushSettings`, and how the model is split.

    Attributes:
        check_weights: Refuse NaN and infinite weights; all weights are then read first.
        parity: Whether the stages are compared with the whole model.
        ignore_code: Accept a model whose repo has code of its own, and leave that code out.
        ignore_fields: Fields of config.json that mlx-lm never reads, and that are ignored.
        quantisation: How the weights are quantised while they are split; None splits them as they are.
    """

    check_weights: bool = False
    parity: ParitySettings = field(default_factory=ParitySettings)
    ignore_code: bool = False
    ignore_fields: tuple[str, ...] = ()
    quantisation: Quantisation | None = None

    def __post_init__(self) -> None:
        check_settings(self)


class ModelPush(Push):
    """A push of a model that is split on the way, decided but not yet run; see `Push`."""

    def __init__(self, model: str | Path, cut: Cut, settings: PublishSettings, watcher: Watcher) -> None:
        check_argument("cut", cut, Cut)
        if settings.by_reference:
            in_folder = isinstance(parse_source(model, settings.source_endpoint)[0], Path)
            check_can_refer(str(model), in_folder=in_folder, quantised=settings.quantisation is not None)
        super().__init__(settings, watcher, checked=settings.check_weights)
        self._settings = settings
        self._kept: KeptParity | None = None
        opened = open_model(
            model,
            source_endpoint=settings.source_endpoint,
            ignore_code=settings.ignore_code,
            ignore_fields=settings.ignore_fields,
            quantisation=settings.quantisation,
            check_weights=settings.check_weights,
            context=cut.context,
            watcher=watcher,
        )
        self._model = with_tokenizer(opened, ignore_code=settings.ignore_code, watcher=watcher)
        hub_name = source_hub(self._model) if settings.by_reference else None
        checkpoint = self._model.checkpoint
        name = base_name(self._model, settings.name, watcher)
        self._contents, self._stages = decide_and_prove(checkpoint, cut, watcher)
        job = prepare(
            checkpoint,
            self._contents,
            self._stages,
            self._work / "folders",  # only the names are used
            name=name,
            source=self._model.source,
            namespace=self._namespace,
            by_reference=settings.by_reference,
            source_hub=hub_name,
        )
        endpoint = self._model.endpoint
        calls = self._calls if endpoint is None else replace(self._calls, api=source_api(endpoint))
        source = source_info(self._model.source, calls)
        if source is not None and settings.by_reference:
            warn_of_access(source, watcher)
        self._decide(job, source)

    def _checked_job(self) -> SplitJob:
        """Check the weights if that is requested, and measure the stages' numbers."""
        settings, watcher, plan = self._settings, self._watcher, self.plan
        checkpoint = self._model.checkpoint
        if settings.check_weights:
            check_weights(plan.job, self._journal, push_progress(watcher))
        if _is_published(plan):
            numbers = Numbers(not_run="everything was already published")
        else:
            self._kept = KeptParity(self._cache, plan.job)
            kept = None if settings.parity.skip else self._kept.read(watcher)
            numbers = kept or measure_split(
                checkpoint, self._contents, self._stages, self._model.source, settings.parity, watcher
            )
        inexact = settle_numbers(
            numbers,
            _recorded(plan) if numbers.parity is None else None,
            where=checkpoint.where,
            stages=self._stages,
            allow_inexact=settings.parity.allow_inexact,
            others=twin_findings(self._contents),
            watcher=watcher,
        )
        return replace(plan.job, numbers=numbers, inexact=inexact)

    def _finish(self, publication: Publication) -> None:
        """Keep what was measured for the next push of these stages."""
        if self._kept is not None:
            self._kept.keep(publication.numbers, publication.pipeline_id)


def publish(
    model: str | Path, cut: Cut, settings: PublishSettings = PublishSettings(), watcher: Watcher = SILENT
) -> Publication:
    """Publish a model's stages, each to a repo of its own, and then the manifest; a killed run is resumed by another.

    Args:
        model: Its folder or Hub id.
        cut: Where to cut.
        settings: Where and how to publish.
        watcher: Notified of the current activity; asked before the pipeline becomes public.

    Raises:
        PlanError, UnsupportedModel, ProofFailed, ParityFailed: As `split`.
        UsageError: The pipeline would become public, and that was not confirmed; or the model cannot be published by
            reference.
        AccessError: The token may not write there.
        Conflict: The name is taken by another cut, or a repo was changed meanwhile.
        WeightFileError: The source changed, or its bytes are not what they were.
        DiskFull: There is no room for a weight file.
        HubUnreachable, HubRefused: The Hub does not answer, or refuses.
    """
    return ModelPush(model, cut, settings, watcher).run()


class Unpublish:
    """The deletion of a pipeline on the Hub, decided but not yet run.

    Attributes:
        removal: Repos to delete, and those that stay because other pipelines name them.
        endpoint: URL of the Hub.

    Raises:
        UsageError: The repo is not a pipeline's.
        AccessError: The token may not delete it.
    """

    def __init__(self, pipeline: str, watcher: Watcher = SILENT) -> None:
        place = parse_reference(pipeline)
        if isinstance(place, Path):
            raise UsageError(
                f"{pipeline} is a folder.", why="Only pipelines on a Hub can be unpublished.", hint="Give ORG/NAME."
            )
        self._watcher = watcher
        self._calls = HubCalls(api=hub(), notice=watcher.note)
        self._calls.writer()
        self.removal: Removal = find_removal(self._calls, place.repo)
        self.endpoint: str = self._calls.api.endpoint

    @property
    def repos(self) -> list[str]:
        """Repos to delete, the manifest's first."""
        return [*([self.removal.pipeline] if self.removal.pipeline else []), *self.removal.shards]

    def run(self) -> None:
        """Delete the repos permanently."""
        remove(self._calls, self.removal, progress=lambda repo: self._watcher.note(f"deleting {repo}"))


def _is_published(plan: PushPlan) -> bool:
    """Whether everything is on the Hub already, as far as is known before weights are read."""
    at = plan.pipeline
    has_manifest = at.action is not Action.REPLACE and at.remote is not None and at.remote.manifest is not None
    return has_manifest and all(shard.action is Action.KEEP for shard in plan.shards)


def _recorded(plan: PushPlan) -> str | None:
    """What the existing manifest states as inexact; None if it is to be replaced, as it is about another cut."""
    at = plan.pipeline
    manifest = at.remote.manifest if at.remote is not None and at.action is not Action.REPLACE else None
    return manifest.inexact if manifest is not None else None
