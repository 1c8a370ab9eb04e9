"""Publishing a model's stages on a Hub, each in a repo of its own, and deleting them again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.checkpoint.quantisation import Quantisation
from shardhub.errors import UsageError
from shardhub.hub.cache import Cache
from shardhub.hub.calls import HubCalls
from shardhub.hub.hubs import hub_example, hubs_file, name_of, source_api
from shardhub.hub.publish import Published
from shardhub.hub.publish import publish as push
from shardhub.hub.push_decisions import Action
from shardhub.hub.push_journal import PushJournal
from shardhub.hub.push_plan import PushPlan, plan_push
from shardhub.hub.push_weights import check_weights
from shardhub.hub.reference import parse_reference
from shardhub.hub.unpublish import Removal, find_removal, remove
from shardhub.naming import check_model_name, check_namespace
from shardhub.parity import Numbers
from shardhub.setting_checks import check_argument, check_settings
from shardhub.source_ranges import check_can_refer
from shardhub.splitting.job import prepare
from shardhub.splitting.source_card import Value, reservations, source_fields
from shardhub.usecases.cut import Cut, decide_and_prove
from shardhub.usecases.parity import ParitySettings, measure_split, settle_numbers, twin_findings
from shardhub.usecases.places import Model, base_name, hub, open_model
from shardhub.usecases.signing import signer_of
from shardhub.usecases.tokenizer import with_tokenizer
from shardhub.usecases.watcher import SILENT, Progress, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from huggingface_hub.hf_api import ModelInfo

    from shardhub.hub.push_weights import PushProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSettings:
    """Where and how a model's stages are published.

    Attributes:
        namespace: User or organisation to publish as; None takes the token's.
        name: Base name of the repos; None takes the model's.
        private: Make repos that only their owner can read.
        replace: Replace other cuts of this name; the old commits stay, tagged.
        by_reference: Upload documents only: nodes fetch the weights from the model's own repo.
        assume_yes: Publish to everyone without a question, whatever the model's licence and gate state.
        check_weights: Refuse NaN and infinite weights; all weights are then read first.
        cache_dir: The cache's folder; None takes the user's.
        parity: Whether the stages are compared with the whole model.
        sign_key: File of the key that signs the manifest.
        ignore_code: Accept a model whose repo has code of its own, and leave that code out.
        ignore_fields: Fields of config.json that mlx-lm never reads, and that are ignored.
        source_endpoint: URL of the Hub that the model is on; None takes the Hub of the model's URL, or HF_ENDPOINT's.
        quantisation: How the weights are quantised while they are split; None splits them as they are.
        client_bars: Let the Hub's client draw progress bars on stderr while a file is uploaded.
    """

    namespace: str | None = None
    name: str | None = None
    private: bool = False
    replace: bool = False
    by_reference: bool = False
    assume_yes: bool = False
    check_weights: bool = False
    cache_dir: str | Path | None = None
    parity: ParitySettings = field(default_factory=ParitySettings)
    sign_key: str | Path | None = None
    ignore_code: bool = False
    ignore_fields: tuple[str, ...] = ()
    source_endpoint: str | None = None
    quantisation: Quantisation | None = None
    client_bars: bool = False

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A published model.

    Attributes:
        pushed: Its repos and commits, and the bytes uploaded.
        size_bytes: Bytes of all its weight files.
        numbers: What is known of the stages' numbers.
        inexact: What is inexact about them, if anything.
    """

    pushed: Published
    size_bytes: int
    numbers: Numbers
    inexact: str | None
    duration_s: float

    @property
    def shards(self) -> tuple[str, ...]:
        """Repos of the shards, in order."""
        return tuple(repo.repo for repo in self.pushed.shards)

    @property
    def pipeline(self) -> str:
        """Repo of the manifest."""
        return self.pushed.pipeline.repo

    @property
    def pipeline_id(self) -> str:
        """The pipeline's identity."""
        return self.pushed.pipeline_id


class Push:
    """A push that is decided but has not written anything yet.

    Attributes:
        plan: What it will do, repo by repo.
        reasons: Reasons against making it public; empty if it is private or there are none.
        fields: Fields of the source's model card.
    """

    def __init__(self, model: str | Path, cut: Cut, settings: PublishSettings, watcher: Watcher) -> None:
        check_argument("cut", cut, Cut)
        self._settings = settings
        self._watcher = watcher
        if settings.name is not None:
            check_model_name(settings.name)
        if settings.namespace is not None:
            check_namespace(settings.namespace)
        if settings.by_reference:
            in_folder = isinstance(parse_reference(model), Path)
            check_can_refer(str(model), in_folder=in_folder, quantised=settings.quantisation is not None)
        self._signer = signer_of(settings.sign_key)
        self._calls = HubCalls(api=hub(), notice=watcher.note)
        account = self._calls.writer()
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
        source_hub = _source_hub(self._model, self._calls) if settings.by_reference else None
        checkpoint = self._model.checkpoint
        name = base_name(self._model, settings.name, watcher)
        self._contents, self._stages = decide_and_prove(checkpoint, cut, watcher)
        self._work = Cache(settings.cache_dir).root / "push"
        job = prepare(
            checkpoint,
            self._contents,
            self._stages,
            self._work / "folders",  # only the names are used
            name=name,
            source=self._model.source,
            namespace=check_namespace(settings.namespace or account.name),
            by_reference=settings.by_reference,
            source_hub=source_hub,
        )
        self._journal = PushJournal(self._work, checked=settings.check_weights)
        gate = None
        if (source := _source_info(self._model, self._calls)) is not None:
            gate = source.gated if isinstance(source.gated, str) else None
            if settings.by_reference:
                warn_of_access(source, watcher)
        self.fields: dict[str, Value] = source_fields(checkpoint.folder)
        self.plan = plan_push(
            job, self._calls, self._journal, private=settings.private, gate=gate, replace=settings.replace
        )
        self.reasons = reservations(self.fields, gated=gate is not None) if self.plan.is_public else []

    def run(self) -> Publication:
        """Write the shards' repos, then the manifest's.

        Raises:
            As `publish`.
        """
        settings, watcher, plan = self._settings, self._watcher, self.plan
        if self.reasons and not settings.assume_yes:
            self._ask_publicly()
        start = time.monotonic()
        checkpoint = self._model.checkpoint
        with _client_bars(shown=settings.client_bars):
            if settings.check_weights:
                check_weights(plan.job, self._journal, push_progress(watcher))
            if _is_published(plan):
                numbers = Numbers(not_run="everything was already published")
            else:
                numbers = measure_split(
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
            job = replace(plan.job, numbers=numbers, inexact=inexact, signer=self._signer)
            done = push(replace(plan, job=job), self._calls, self._journal, self._work, progress=push_progress(watcher))
        return Publication(
            pushed=done,
            size_bytes=sum(shard.size_bytes for shard in job.shards),
            numbers=numbers,
            inexact=inexact,
            duration_s=time.monotonic() - start,
        )

    def _ask_publicly(self) -> None:
        for reason in self.reasons:
            self._watcher.note(f"Everyone will be able to read it, but {reason}.")
        if link := self.fields.get("license_link"):
            self._watcher.note(f"Its licence: {str(link)[:200]}")
        answer = self._watcher.ask("Are you allowed to publish it, and do you want to?")
        if answer is None:
            raise UsageError(
                "Publishing this model to everyone needs a confirmation.",
                why=f"{self.reasons[0][:1].upper()}{self.reasons[0][1:]}.",
                hint="Add `private`, or `assume_yes` if you are allowed to publish it.",
            )
        if not answer:
            raise UsageError(
                "Nothing was published. `private` publishes it for you alone.", why="The answer was not yes."
            )


def publish(
    model: str | Path, cut: Cut, settings: PublishSettings = PublishSettings(), watcher: Watcher = SILENT
) -> Publication:
    """Publish a model's stages, each to a repo of its own, and then the manifest; a killed run is resumed by another.

    Args:
        model: Its folder or Hub id.
        cut: Where to cut.
        settings: Where and how to publish.
        watcher: Notified of the current activity; asked whether a model with a licence or a gate may become public.

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
    return Push(model, cut, settings, watcher).run()


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


def _source_hub(model: Model, calls: HubCalls) -> str | None:
    """Name of the Hub that nodes take the weights from; None if it is the pipeline's own.

    Raises:
        UsageError: The user's settings do not name it: documents hold names and no addresses.
    """
    if model.endpoint is None:
        return None
    if (name := name_of(model.endpoint)) is None:
        raise UsageError(
            f"{model.source.repo} is at {model.endpoint}, and the pipeline would be at {calls.api.endpoint}.",
            why=f"Documents name the Hub that weights are fetched from, and {hubs_file()} has no name for this one.",
            hint=f"{hub_example(model.endpoint)} Or leave out `by_reference`.",
        )
    return name


def _source_info(model: Model, calls: HubCalls) -> ModelInfo | None:
    """What its Hub says about the source's repo; None if it is a folder."""
    repo = model.source.repo
    if repo is None:
        return None
    if model.endpoint is not None:
        calls = replace(calls, api=source_api(model.endpoint))
    return calls.run(
        lambda: calls.api.model_info(repo, revision=model.source.commit),
        what=f"checking whether {repo} is gated",
        repo=repo,
        revision=model.source.commit,
    )


def warn_of_access(source: ModelInfo, watcher: Watcher) -> None:
    """Warn that nodes need access to a model whose weights they fetch from its own repo."""
    if source.private or source.gated:
        state = "private" if source.private else "gated"
        watcher.note(f"warning: {source.id} is {state}: whoever serves a stage needs a token that can read it")


def push_progress(watcher: Watcher) -> Callable[[PushProgress], None]:
    """Make a callback that passes a push's progress on to a watcher."""

    def forward(state: PushProgress) -> None:
        watcher.progress(
            Progress(
                activity=state.activity,
                item=f"{state.file} for {state.repo}",
                done=state.done_bytes,
                total=state.total_bytes,
            )
        )

    return forward


@contextlib.contextmanager
def _client_bars(*, shown: bool) -> Iterator[None]:
    """Show or hide the progress bars of the Hub's client, and restore its setting afterwards."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
