"""Pushing a split to a Hub: what every push does, and pushing the folders that `split` wrote."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardhub.checkpoint.checkpoint import verify_weight_file
from shardhub.errors import AccessError, NotFound, UsageError
from shardhub.hub.cache import Cache
from shardhub.hub.calls import HubCalls
from shardhub.hub.compare_source import ComparedFile, check_has_source, compare_with_source
from shardhub.hub.hubs import source_api
from shardhub.hub.publish import Published
from shardhub.hub.publish import publish as carry_out
from shardhub.hub.push_decisions import Action
from shardhub.hub.push_journal import PushJournal
from shardhub.hub.push_plan import PushPlan, plan_push
from shardhub.naming import SIGNATURE_FILE, check_is_text, check_model_name, check_namespace
from shardhub.parity import PARITY_FOLDER, Numbers, newest, parse_record, read_record_files
from shardhub.setting_checks import check_argument, check_settings
from shardhub.splitting.source_card import Value, reservations, source_fields
from shardhub.splitting.written_split import WrittenSplit, find_pipeline, read_split
from shardhub.usecases.parity import warn_inexact
from shardhub.usecases.pipeline_source import open_source, source_endpoint, warn_of_access
from shardhub.usecases.places import hub
from shardhub.usecases.signing import signer_of
from shardhub.usecases.watcher import SILENT, Progress, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from huggingface_hub.hf_api import ModelInfo

    from shardhub.hub.push_weights import PushProgress
    from shardhub.manifest import Source
    from shardhub.splitting.job import SplitJob

# Number of repos that a question lists.
_REPOS_SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class PushSettings:
    """Where folders that `split` wrote are published.

    Attributes:
        namespace: User or organisation to publish as; None takes the token's.
        name: Base name of the repos; None takes the model's.
        by_reference: Upload documents only: nodes fetch the weights from the model's own repo.
        source_endpoint: URL of the Hub that the model is on; None takes the Hub of the model's URL, or HF_ENDPOINT's.
        private: Make repos that only their owner can read; None does so if the model's own repo is private.
        replace: Replace other cuts of this name; the old commits stay, tagged.
        assume_yes: Publish to everyone without a question, whatever the model's licence and gate state.
        cache_dir: The cache's folder; None takes the user's.
        sign_key: File of the key that signs the manifest.
        client_bars: Let the Hub's client draw progress bars on stderr while a file is uploaded.
    """

    namespace: str | None = None
    name: str | None = None
    by_reference: bool = False
    source_endpoint: str | None = None
    private: bool | None = None
    replace: bool = False
    assume_yes: bool = False
    cache_dir: str | Path | None = None
    sign_key: str | Path | None = None
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

    Args:
        settings: Where to publish.
        watcher: Notified of the current activity, and asked before a pipeline becomes public.
        checked: Whether all weights are checked for NaN and infinity.

    Attributes:
        plan: What it will do, repo by repo.
        reasons: Reasons against making it public; empty if it is private or there are none.
        follows: The private source whose privacy new repos take over; empty without one.
        fields: Fields of the source's model card.
    """

    plan: PushPlan
    reasons: list[str]
    follows: str
    fields: dict[str, Value]

    def __init__(self, settings: PushSettings, watcher: Watcher, *, checked: bool = False) -> None:
        self._destination = settings
        self._watcher = watcher
        if settings.name is not None:
            check_model_name(settings.name)
        if settings.namespace is not None:
            check_namespace(settings.namespace)
        self._signer = signer_of(settings.sign_key)
        self._calls = HubCalls(api=hub(), notice=watcher.note)
        account = self._calls.writer()
        self._namespace = check_namespace(settings.namespace or account.name)
        self._cache = Cache(settings.cache_dir)
        self._work = self._cache.root / "push"
        self._journal = PushJournal(self._work, checked=checked)

    def run(self) -> Publication:
        """Write the shards' repos, then the manifest's.

        Raises:
            As `publish` and `push`.
        """
        self._confirm()
        start = time.monotonic()
        with _client_bars(shown=self._destination.client_bars):
            job = replace(self._checked_job(), signer=self._signer)
            done = carry_out(
                replace(self.plan, job=job),
                self._calls,
                self._journal,
                self._work,
                progress=push_progress(self._watcher),
            )
        made = Publication(
            pushed=done,
            size_bytes=sum(shard.size_bytes for shard in job.shards),
            numbers=job.numbers,
            inexact=job.inexact,
            duration_s=time.monotonic() - start,
        )
        self._finish(made)
        return made

    def _decide(self, job: SplitJob, source: ModelInfo | None, doubts: Sequence[str] = ()) -> None:
        """Decide what to do with each repo.

        Args:
            job: What is published.
            source: What a Hub says about the source's repo; None if it is a folder, or not known.
            doubts: Further reasons against making it public.
        """
        settings = self._destination
        gate = source.gated if source is not None and isinstance(source.gated, str) else None
        self.fields = source_fields(job.checkpoint.folder)
        self.plan = plan_push(
            job, self._calls, self._journal, private=settings.private is True, gate=gate, replace=settings.replace
        )
        self.follows = ""
        if source is not None and source.private:
            doubts = [*doubts, "its own repo is private"]
            if settings.private is None and all(at.remote is None or at.remote.private for at in self.plan.decisions):
                self.follows, self.plan = source.id, replace(self.plan, private=True)
        self.reasons = [*reservations(self.fields, gated=gate is not None), *doubts] if self.plan.is_public else []

    def _checked_job(self) -> SplitJob:
        """Check what is published; returns the job with what is known of its numbers."""
        raise NotImplementedError

    def _finish(self, publication: Publication) -> None:
        """Keep what the next push can use."""

    def _confirm(self) -> None:
        """Ask before anything becomes public: always where there are reasons against, else if a person can answer.

        Raises:
            UsageError: The answer is no, or reasons need one and nobody can answer.
        """
        new = [at.repo for at in self.plan.decisions if at.remote is None and not self.plan.private]
        if self._destination.assume_yes or not (self.reasons or new):
            return
        for reason in self.reasons:
            self._watcher.note(f"Everyone will be able to read it, but {reason}.")
        if link := self.fields.get("license_link"):
            self._watcher.note(f"Its licence: {str(link)[:200]}")
        if self.reasons:
            answer = self._watcher.ask("Are you allowed to publish it, and do you want to?")
        else:
            more = f" and {len(new) - _REPOS_SHOWN} more" if len(new) > _REPOS_SHOWN else ""
            answer = self._watcher.ask(f"Make these repos public: {', '.join(new[:_REPOS_SHOWN])}{more}?")
        if answer is None and self.reasons:
            raise UsageError(
                "Publishing this model to everyone needs a confirmation.",
                why=f"{self.reasons[0][:1].upper()}{self.reasons[0][1:]}.",
                hint="Add `private`, or `assume_yes` if you are allowed to publish it.",
            )
        if answer is False:
            raise UsageError(
                "Nothing was published. `private` publishes it for you alone.", why="The answer was not yes."
            )


class FolderPush(Push):
    """A push of the folders that `split` wrote, decided but not yet run; see `Push`."""

    def __init__(self, folder: str | Path, settings: PushSettings, watcher: Watcher) -> None:
        check_argument("folder", folder, str | Path)
        place = find_pipeline(Path(folder))
        check_is_text(place)
        super().__init__(settings, watcher)
        job = read_split(place, name=settings.name, namespace=self._namespace)
        self._job = replace(job, **_recorded(job))
        if settings.by_reference:
            check_has_source(str(place), job.source)
            self._job = _by_reference(self._job, settings.source_endpoint, watcher)
        if self._signer is None and (place / SIGNATURE_FILE).is_file():
            watcher.note(
                "warning: the folder's manifest is signed, but the published one names repos and needs a signature of "
                "its own: add `sign_key`, or it stays unsigned"
            )
        source, doubts = None, []
        try:
            source = source_info(job.source, replace(self._calls, api=source_api(settings.source_endpoint)))
        except (NotFound, AccessError) as error:  # the source may be on another Hub, or gone since it was split
            doubts = [f"it is not known whether the source is gated: {error.what.rstrip('.')}"]
        if source is not None and settings.by_reference:
            warn_of_access(source, watcher)
        self._decide(self._job, source, doubts)

    def _checked_job(self) -> SplitJob:
        """Check every weight file that may be uploaded or left in the source, before anything is written."""
        watcher = self._watcher
        files = [
            (shard, file)
            for shard, decision in zip(self._job.written, self.plan.shards, strict=True)
            if decision.action is not Action.KEEP
            for file in shard.stage.weight_files
        ]
        total, done = sum(file.size_bytes for _, file in files), 0
        for shard, file in files:
            verify_weight_file(shard.folder / file.name, file, shard.tensors)
            done += file.size_bytes
            watcher.progress(Progress(activity="checking", item=file.name, done=done, total=total))
        if (source := self._job.source_checkpoint) is not None:
            compared = [
                ComparedFile(label=f"{self._job.shard_label(shard)}/{file.name}", sha256=file.sha256, left=left)
                for shard, decision in zip(self._job.shards, self.plan.shards, strict=True)
                if decision.action is not Action.KEEP
                for file, left in self._job.to_compare(shard)
            ]
            compare_with_source(source, self._job.source, compared, self._journal, push_progress(watcher))
        warn_inexact(self._job.inexact, watcher)
        return self._job


def push(folder: str | Path, settings: PushSettings = PushSettings(), watcher: Watcher = SILENT) -> Publication:
    """Publish the folders that `split` wrote, as `publish` would; a killed run is resumed by another.

    Every weight file is checked against its stage before anything is written, and by reference the source's bytes are,
    too. Parity records are carried on.

    Args:
        folder: The folder that `split` wrote into, or the pipeline's folder in it.
        settings: Where to publish.
        watcher: Notified of the current activity; asked before the pipeline becomes public.

    Raises:
        UsageError: The folder does not hold one whole split, or becoming public was not confirmed.
        IntegrityError: A document or a weight file is not what was written, or the source does not give its bytes.
        AccessError: The token may not write there.
        Conflict: The name is taken by another cut, or a repo was changed meanwhile.
        HubUnreachable, HubRefused: The Hub does not answer, or refuses.
    """
    return FolderPush(folder, settings, watcher).run()


def _by_reference(job: WrittenSplit, endpoint: str | None, watcher: Watcher) -> WrittenSplit:
    """The job with everything left in the source that the source holds.

    Raises:
        UsageError: The source holds none of the weights.
        As `open_source`.
    """
    manifest = job.pipeline.manifest
    source = open_source(manifest, source_endpoint(manifest, endpoint), watcher)
    stored = source.checkpoint.tensors
    tensors = {
        name: stored[source.stored_names[name]]
        for name, spec in job.written[0].tensors.items()
        if source.stored_names.get(name) in stored and stored[source.stored_names[name]].spec == spec
    }
    job = replace(
        job,
        by_reference=True,
        source_hub=source.hub,
        source_checkpoint=source.checkpoint,
        source_tensors=tensors,
    )
    if not any(job.left_files(shard) for shard in job.shards):
        raise UsageError(
            f"No weight file of {job.pipeline.folder} can be fetched from {job.source.repo}.",
            why="Each consists of tensors that mlx-lm computes when it loads the model.",
            hint="Leave out `by_reference`.",
        )
    return job


def _recorded(job: WrittenSplit) -> dict[str, Any]:
    """What the folder records of its numbers: the newest record for the cards, and all of them to carry on.

    Raises:
        IntegrityError: A record was changed, or is another pipeline's.
    """
    folder, pipeline_id = job.pipeline.folder, job.pipeline.manifest.pipeline_id
    files = read_record_files(folder)
    records = [
        parse_record(name, data, pipeline_id=pipeline_id, where=f"{folder}/{PARITY_FOLDER}/{name}")
        for name, data in files.items()
    ]
    numbers = Numbers(parity=newest(records), not_run="" if records else "not when the model was split")
    return {"numbers": numbers, "records": {f"{PARITY_FOLDER}/{name}": data for name, data in files.items()}}


def source_info(source: Source, calls: HubCalls) -> ModelInfo | None:
    """What a Hub says about the source's repo; None if it is a folder."""
    repo = source.repo
    if repo is None:
        return None
    return calls.run(
        lambda: calls.api.model_info(repo, revision=source.commit),
        what=f"checking whether {repo} is gated",
        repo=repo,
        revision=source.commit,
    )


def push_progress(watcher: Watcher) -> Callable[[PushProgress], None]:
    """Make a callback that shows a push's progress."""

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
