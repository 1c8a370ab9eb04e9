"""Finding pipelines on a Hub by the tag of their cards, and reading their small documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from shardhub.errors import AccessError, IntegrityError, NotFound
from shardhub.hub.calls import HubCalls
from shardhub.hub.listed import ListedFile
from shardhub.hub.remote_repo import list_files, read_document, read_small
from shardhub.hub.several import in_threads
from shardhub.manifest import Manifest, Parity
from shardhub.naming import MANIFEST_FILE
from shardhub.parity import MAX_RECORD_BYTES, PARITY_FOLDER, parse_record
from shardhub.splitting.cards import PIPELINE_TAG

# Pipelines read at a time: each costs three small requests one after the other.
_NUM_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRepo:
    """A repo with the pipelines' tag."""

    repo: str
    commit: str
    private: bool
    gated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineDocuments:
    """The small documents of a pipeline.

    Attributes:
        manifest: Its shardhub.json; None if the token may not read it, or the repo has no valid one.
        parity: The newest parity record beside it.
        refusal: Why the token may not read it; empty if it may.
    """

    manifest: Manifest | None = None
    parity: Parity | None = None
    refusal: str = ""


def list_pipelines(calls: HubCalls, *, search: str | None, namespace: str | None, limit: int) -> list[ListedRepo]:
    """List repos with the pipelines' tag that the token may see, page by page.

    Args:
        calls: The Hub.
        search: Part of their names; None takes all.
        namespace: User or organisation; None takes all.
        limit: Most repos.
    """

    def ask() -> list[ListedRepo]:
        models = calls.api.list_models(
            filter=PIPELINE_TAG, search=search, author=namespace, limit=limit, expand=["sha", "private", "gated"]
        )
        return [
            ListedRepo(repo=info.id, commit=str(info.sha), private=bool(info.private), gated=bool(info.gated))
            for info in models
            if info.sha
        ]

    return calls.run(ask, what="searching for pipelines")


def read_pipelines(
    calls: HubCalls, listed: Sequence[ListedRepo], *, progress: Callable[[int], None]
) -> list[PipelineDocuments]:
    """Read the documents of pipelines, several at a time; returns them in the same order.

    Args:
        calls: The Hub.
        listed: The repos.
        progress: Called with the number of repos done.
    """
    documents: dict[int, PipelineDocuments] = {}

    def read(index: int, check: Callable[[], None]) -> tuple[int, PipelineDocuments]:
        check()
        return index, _read(calls, listed[index])

    for index, one in in_threads(read, range(len(listed)), num_threads=_NUM_AT_ONCE):
        documents[index] = one
        progress(len(documents))
    return [documents[index] for index in range(len(listed))]


def _read(calls: HubCalls, at: ListedRepo) -> PipelineDocuments:
    try:
        files = list_files(calls, at.repo, at.commit)
        if MANIFEST_FILE not in files:
            return PipelineDocuments()
        manifest = read_document(Manifest, calls, at.repo, at.commit, files[MANIFEST_FILE])
        if manifest is None:
            return PipelineDocuments()
        return PipelineDocuments(manifest=manifest, parity=_parity(calls, at, files, manifest))
    except AccessError as error:
        return PipelineDocuments(refusal=error.what)
    except (NotFound, IntegrityError):  # deleted since it was listed, or changed by hand
        return PipelineDocuments()


def _parity(calls: HubCalls, at: ListedRepo, files: Mapping[str, ListedFile], manifest: Manifest) -> Parity | None:
    """The newest parity record of a pipeline; None without one, or with one that cannot be read."""
    # Records are named by their time.
    names = [path for path in files if str(PurePosixPath(path).parent) == PARITY_FOLDER]
    if not names or files[name := max(names)].size_bytes > MAX_RECORD_BYTES:
        return None
    data = read_small(calls, at.repo, at.commit, files[name])
    try:
        return parse_record(PurePosixPath(name).name, data, pipeline_id=manifest.pipeline_id, where=f"{at.repo}/{name}")
    except IntegrityError:  # changed by hand: the pipeline is still one
        return None
