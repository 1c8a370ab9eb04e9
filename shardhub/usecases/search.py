"""Searching a Hub for pipelines."""

from __future__ import annotations

from dataclasses import dataclass

from shardhub.hub.calls import HubCalls
from shardhub.hub.find_pipelines import ListedRepo, PipelineDocuments, list_pipelines, read_pipelines
from shardhub.manifest import Manifest, Parity
from shardhub.naming import check_namespace
from shardhub.parity import describe, said_inexact
from shardhub.setting_checks import check_argument, check_settings
from shardhub.usecases.places import hub
from shardhub.usecases.watcher import SILENT, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """Which pipelines of a Hub are listed.

    Attributes:
        namespace: Only those of this user or organisation.
        limit: Most pipelines.
    """

    namespace: str | None = None
    limit: int = 100

    def __post_init__(self) -> None:
        check_settings(self, limit=(1, None))


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPipeline:
    """A pipeline on a Hub.

    Attributes:
        repo, commit: Where it is.
        private: Whether only its owner can see it.
        gated: Whether its owner grants access on request.
        refusal: Why the token may not read it, so that nothing else is known; empty if it may.
        model: Repo of the model it was made from, or the name of its shards.
        num_stages, num_layers: Its stages, and the model's layers.
        size_bytes: Size of its weight files.
        by_reference: Whether nodes fetch weights from the model's own repo.
        parity: Its newest parity record; None without one.
        inexact: What is inexact about its numbers, if anything.
        pipeline_id: Its identity.
    """

    repo: str
    commit: str
    private: bool
    gated: bool
    refusal: str = ""
    model: str = ""
    num_stages: int = 0
    num_layers: int = 0
    size_bytes: int = 0
    by_reference: bool = False
    parity: Parity | None = None
    inexact: str | None = None
    pipeline_id: str = ""

    @property
    def parity_line(self) -> str:
        """What its parity record shows, on one line."""
        return describe(self.parity) if self.parity is not None else "no parity record"


def search(
    words: str = "", settings: SearchSettings = SearchSettings(), watcher: Watcher = SILENT
) -> tuple[PublishedPipeline, ...]:
    """List the pipelines of a Hub that the token may see; only small documents are read.

    Args:
        words: Words that the pipeline's or its model's name has, in any order; none list all pipelines.
        settings: Which pipelines.
        watcher: Notified of the current activity.

    Returns:
        The pipelines in the Hub's order.

    Raises:
        AccessError, HubUnreachable, HubRefused: The Hub cannot be searched.
    """
    check_argument("words", words, str)
    if settings.namespace is not None:
        check_namespace(settings.namespace)
    calls = HubCalls(api=hub(), notice=watcher.note)
    parts = words.lower().split()
    try:
        watcher.doing("searching for pipelines")
        # Every Hub searches for one text; the longest word leaves the fewest pipelines to read.
        listed = list_pipelines(
            calls, search=max(parts, key=len, default=None), namespace=settings.namespace, limit=settings.limit
        )
        documents = read_pipelines(
            calls, listed, progress=lambda done: watcher.doing(f"reading pipelines: {done} of {len(listed)}")
        )
    finally:
        watcher.doing("")
    pipelines = [_pipeline(at, one) for at, one in zip(listed, documents, strict=True) if one.manifest or one.refusal]
    if num_others := len(listed) - len(pipelines):
        have = "repos have" if num_others > 1 else "repo has"
        watcher.note(f"{num_others} {have} the tag of pipelines, but not a manifest that this shardhub reads")
    return tuple(one for one in pipelines if all(part in f"{one.repo} {one.model}".lower() for part in parts))


def _pipeline(at: ListedRepo, documents: PipelineDocuments) -> PublishedPipeline:
    manifest: Manifest | None = documents.manifest
    if manifest is None:
        return PublishedPipeline(
            repo=at.repo, commit=at.commit, private=at.private, gated=at.gated, refusal=documents.refusal
        )
    return PublishedPipeline(
        repo=at.repo,
        commit=at.commit,
        private=at.private,
        gated=at.gated,
        model=manifest.source.repo or manifest.name,
        num_stages=len(manifest.stages),
        num_layers=manifest.num_layers,
        size_bytes=sum(stage.size_bytes for stage in manifest.stages),
        by_reference=manifest.format_version > 1,
        parity=documents.parity,
        inexact=said_inexact(manifest, documents.parity),
        pipeline_id=manifest.pipeline_id,
    )
