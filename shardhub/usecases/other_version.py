"""What to do about a node that serves another version of a pipeline: which side is older, and how to agree again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.errors import OtherPipeline, ShardhubError
from shardhub.hub.pipeline_versions import PipelineVersion, pipeline_versions
from shardhub.hub.published_commit import pipeline_repo
from shardhub.hub.ranges import Patience
from shardhub.hub.reference import Reference, parse_reference
from shardhub.manifest import Manifest, RepoLocation, ShardHint, canonical, decode
from shardhub.naming import MANIFEST_FILE
from shardhub.shard import Shard
from shardhub.usecases.places import Places
from shardhub.usecases.watcher import Watcher

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_DIGITS = 12


def explain_other_version(
    error: OtherPipeline, place: Reference | None, commit: str, api: Callable[[], HfApi], watcher: Watcher
) -> OtherPipeline:
    """The error with what the Hub says: whether it has a newer pipeline, which side is older, and the ways out.

    Args:
        error: A node serves another stage.
        place: The pipeline's repo; None if it is a folder.
        commit: The commit that this command runs.
        api: Makes the Hub's client.
        watcher: Notified of waits.
    """
    if place is None and not error.is_same_model:
        return error
    if place is None:
        why = f"{error.why} This command runs a pipeline from a folder, so the Hub was not asked which one is older."
        return error.explained(why=why, hint=error.hint)
    try:
        versions = list(pipeline_versions(api(), place.repo, Patience(notice=watcher.note)))
    except ShardhubError as refused:
        why = f"{error.why} The Hub could not be asked which side is older: {refused.what}"
        return error.explained(why=f"{why} {refused.why}".rstrip(), hint=error.hint)
    return decide(error, place.repo, commit, versions)


def decide(error: OtherPipeline, repo: str, commit: str, versions: Sequence[PipelineVersion]) -> OtherPipeline:
    """Say which side is older, and give the command for each way out.

    Args:
        error: A node serves another stage.
        repo: The pipeline's repo.
        commit: The commit that this command runs.
        versions: The pipeline's versions, newest first.
    """
    theirs = next((one for one in versions if _names(one.manifest, error.digests)), None)
    # A new version may be of another model: a repo's history says that, and its configuration does not.
    if not versions or (theirs is None and not error.is_same_model):
        return error
    newest = versions[0]
    # Commits that change only cards and records are versions with the same stages.
    is_newest = _same_stages(newest, commit, versions)
    node_is_newest = _names(newest.manifest, error.digests)
    at_newest = f"{repo} is at {newest.commit[:_DIGITS]} on the Hub"
    ours = f"this command runs {'that version' if is_newest else f'the older {commit[:_DIGITS]}'}"
    update_this = f"To update this command, give it {repo}@{newest.commit[:_DIGITS]}."
    update_node = (
        f"To update the node, run on its machine `shardhub serve {_shard(newest.manifest, error.start, repo)}`."
    )
    advice = [] if is_newest else [update_this]
    if theirs is None:
        why = f"{at_newest}; {ours}, and the node's stage is in none of the last {len(versions)} versions."
        return error.explained(why=why, hint=" ".join([*advice, update_node]))
    node = f"the node serves {'that version' if node_is_newest else f'the older {theirs.commit[:_DIGITS]}'}"
    if not node_is_newest:
        stay = f"To stay with the node's version, give this command {repo}@{theirs.commit[:_DIGITS]}."
        advice += [update_node, stay]
    elif (mine := next((one.manifest for one in versions if one.commit == commit), None)) is not None:
        shard = _shard(mine, error.start, repo, at_commit=True)
        advice.append(f"To stay with this command's version, run on the node's machine `shardhub serve {shard}`.")
    return error.explained(why=f"{at_newest}; {ours}, and {node}.", hint=" ".join(advice))


def note_newer_version(named: Sequence[str | Path], shards: Sequence[Shard], places: Places, watcher: Watcher) -> None:
    """Note that the Hub has a newer version of a pipeline than the one whose stage is to be served, if it has.

    Only what is named at a revision can be older; without one, the newest version was taken.

    Args:
        named: The shards or the pipeline, as they were named.
        shards: What they are.
        places: Where they were fetched.
        watcher: Receives the note.
    """
    references = [place for text in named if isinstance(place := parse_reference(text), Reference)]
    if not any(place.revision for place in references):
        return
    place, pipeline, digests = references[0], references[0].repo, [one.digest for one in shards]
    try:
        if (block := shards[0].config.get("shardhub")) is not None and not _is_pipeline(places, place):
            pipeline = pipeline_repo(place.repo, decode(ShardHint, canonical(block), where=f"{place}: shardhub"))
        versions = []
        for version in pipeline_versions(places.fetcher.api, pipeline, Patience(notice=watcher.note)):
            versions.append(version)
            if _names(version.manifest, digests):
                break
    except ShardhubError as error:
        watcher.note(f"note: the Hub could not be asked whether {pipeline} has a newer version: {error.what}")
        return
    if not versions or _names(versions[0].manifest, digests):
        return
    newest, last = versions[0], versions[-1]
    is_known = _names(last.manifest, digests)
    older = f"the older {last.commit[:_DIGITS]}" if is_known else f"none of its last {len(versions)} versions"
    update = f"To update it: shardhub serve {_shard(newest.manifest, shards[0].stage.start, pipeline)}."
    stay = f" To stay with it, give heads {pipeline}@{last.commit[:_DIGITS]}." if is_known else ""
    watcher.note(
        f"warning: {pipeline} is at {newest.commit[:_DIGITS]} on the Hub, and this node serves a stage of {older}: "
        f"heads of the newer version refuse it. {update}{stay}"
    )


def _is_pipeline(places: Places, place: Reference) -> bool:
    """Whether a fetched repo is a pipeline's."""
    return (places.folder(str(place)) / MANIFEST_FILE).is_file()


def _same_stages(newest: PipelineVersion, commit: str, versions: Sequence[PipelineVersion]) -> bool:
    alike = takewhile(lambda one: one.manifest.pipeline_id == newest.manifest.pipeline_id, versions)
    return any(one.commit == commit for one in alike)


def _names(manifest: Manifest, digests: Sequence[str]) -> bool:
    return set(digests) <= {stage.digest for stage in manifest.stages}


def _shard(manifest: Manifest, start: int, repo: str, *, at_commit: bool = False) -> str:
    """The shard whose stage begins at a layer, else the pipeline, of which `serve` takes a stage that fits."""
    for stage in manifest.stages:
        for place in stage.locations:
            if stage.start == start and isinstance(place, RepoLocation):
                return f"{place.repo}@{place.commit[:_DIGITS]}" if at_commit else place.repo
    return repo
