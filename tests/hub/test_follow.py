"""Newer versions of a pipeline: nodes that follow them, and heads that meet a node of another version."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import HfApi

import shardhub
from shardhub.chain.links import describe
from shardhub.errors import NodeLoading
from shardhub.hub.cache import Cache
from shardhub.hub.fetch import Fetcher
from shardhub.hub.reference import Reference, parse_reference
from shardhub.localhub.server import RunningHub
from shardhub.manifest import Manifest, encode
from shardhub.naming import MANIFEST_FILE
from shardhub.shard import Pipeline
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.other_version import explain_other_version
from shardhub.usecases.places import hub
from shardhub.usecases.watcher import Silent
from tests import cut
from tests.hub.published import OVER_LFS, Published, publish
from tests.hub.sharing import sharing
from tests.waiting import wait_until

pytestmark = OVER_LFS

RAW = shardhub.Sampling(max_tokens=8)


class Notes(Silent):
    """Keeps notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)

    def has(self, part: str) -> bool:
        return any(part in text for text in self.texts)


@dataclass(frozen=True, kw_only=True)
class Versions:
    """A pipeline's repo with two versions of other cuts; the older one is the newest again.

    Attributes:
        repo: The pipeline.
        shards: Repos of its shards.
        old, new: Manifests of the versions.
        old_commit, new_commit: Their commits.
    """

    api: HfApi
    repo: str
    shards: tuple[str, ...]
    old: Manifest
    new: Manifest
    old_commit: str
    new_commit: str

    def set(self, manifest: Manifest) -> str:
        """Make a version the newest; returns its commit."""
        return self.api.upload_file(path_or_fileobj=encode(manifest), path_in_repo=MANIFEST_FILE, repo_id=self.repo).oid


@pytest.fixture(scope="module")
def cut_earlier(whole_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The model of `whole_model`, cut one layer earlier than `cut_in_two`."""
    return cut.cut(whole_model, tmp_path_factory.mktemp("earlier"), (2,))


@pytest.fixture
def versions(
    monkeypatch: pytest.MonkeyPatch,
    shared_hub: RunningHub,
    api: HfApi,
    user: str,
    cut_in_two: Pipeline,
    cut_earlier: Pipeline,
    tmp_path: Path,
) -> Versions:
    """Two versions on the Hub, which the library uses."""
    monkeypatch.setenv("HF_ENDPOINT", shared_hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", str(api.token))
    old: Published = publish(api, user, cut_in_two, tmp_path / "old")
    old_commit = str(api.model_info(old.pipeline).sha)
    new: Published = publish(api, user, cut_earlier, tmp_path / "new")
    return Versions(
        api=api,
        repo=old.pipeline,
        shards=old.shards,
        old=old.manifest,
        new=new.manifest,
        old_commit=old_commit,
        new_commit=str(api.model_info(new.pipeline).sha),
    )


def digests(node: shardhub.Node) -> list[str]:
    return [shard.digest for shard in node.facts.shards]


def stages(manifest: Manifest) -> list[str]:
    return [stage.digest for stage in manifest.stages]


def test_new_revision_is_served_once_the_sessions_end(versions: Versions) -> None:
    """An answer that runs ends on the old revision; then the same address serves the new one, with the same numbers."""
    versions.set(versions.old)
    notes = Notes()
    settings = shardhub.ServeSettings(follow=True, follow_interval_s=0.1)
    with shardhub.serve(versions.shards, settings, notes) as node:
        address = node.address
        assert digests(node) == stages(versions.old)
        with shardhub.open_head(shardhub.HeadSettings(pipeline=versions.repo, nodes=address)) as head:
            expected = head.answer("abc", RAW, raw=True).tokens
            stream = head.stream("abc", shardhub.Sampling(max_tokens=300), raw=True)
            next(stream)
            versions.set(versions.new)
            pieces = list(stream)
            assert pieces
            assert stream.answer.usage.num_recoveries == 0
            assert stream.answer.tokens[: len(expected)] == expected
        seen: set[str] = set()
        wait_until(lambda: answer(address, seen) == stages(versions.new))
        assert "loading" in seen  # the address is away for a moment only, and answers while the new stage is loaded
        wait_until(lambda: digests(node) == stages(versions.new))
        assert node.address == address
        assert notes.has("is served once the present sessions have ended")
        with shardhub.open_head(shardhub.HeadSettings(pipeline=versions.repo, nodes=address)) as head:
            assert head.answer("abc", RAW, raw=True).tokens == expected
    assert node.wait() == 0


@pytest.fixture
def neighbour(versions: Versions, tmp_path: Path) -> Iterator[str]:
    """The address of a node whose cache has the last stage of the newer version."""
    cache = Cache(tmp_path / "neighbour")
    place = versions.new.stages[1].locations[0]
    Fetcher(lambda: versions.api, cache).fetch(Reference(repo=place.repo, revision=place.commit))  # type: ignore[union-attr]
    with LoopThread() as loop, sharing(loop, cache) as address:
        yield address
    cache.release()


def test_revision_that_cannot_be_fetched_or_loaded_leaves_the_old_one(versions: Versions, neighbour: str) -> None:
    """A revision with other bytes than its pipeline names, and one that does not fit; both are reported.

    What the new one needs comes from a neighbour.
    """
    versions.set(versions.old)
    notes = Notes()
    # A session takes 0.52 MB on the old stage and 0.70 MB on the new one, which has another layer.
    memory_bytes = (versions.old.stages[1].size_bytes + 0.61e6) / 0.9
    settings = shardhub.ServeSettings(
        follow=True,
        follow_interval_s=0.1,
        stages="1",
        context=64,
        memory=f"{memory_bytes / 1e6:.6f}MB",
        neighbours=neighbour,
    )
    with shardhub.serve(versions.repo, settings, notes) as node:
        old, address = digests(node), node.address
        entries = tuple(
            entry.model_copy(update={"digest": f"{index:064x}"}) for index, entry in enumerate(versions.new.stages)
        )
        versions.set(versions.new.model_copy(update={"stages": entries}))
        wait_until(lambda: notes.has("which goes on as it is"))
        assert digests(node) == old
        versions.set(versions.new)
        wait_until(lambda: notes.has("cannot be served, so the old one is served again"))
        assert notes.has("fetching 1 of 1 weight files (0.20 MB) from " + neighbour), notes.texts
        wait_until(lambda: served_digests(address) == old)
        assert node.address == address
    assert node.wait() == 0


def answer(address: str, seen: set[str]) -> list[str]:
    """Stage digests that a node serves; empty, with the reason in `seen`, if it does not serve now."""
    try:
        return list(asyncio.run(describe(address)).stage.digests)
    except NodeLoading:
        seen.add("loading")
    except shardhub.NodeUnreachable:
        seen.add("away")
    return []


def served_digests(address: str) -> list[str]:
    """Stage digests that a node serves; empty while it loads."""
    try:
        return list(asyncio.run(describe(address)).stage.digests)
    except shardhub.NodeUnreachable:
        return []


def test_only_repos_that_can_change_are_followed(versions: Versions, cut_in_two: Pipeline) -> None:
    settings = shardhub.ServeSettings(follow=True)
    with pytest.raises(shardhub.UsageError, match="cannot be followed"):
        shardhub.serve(cut_in_two.folder, settings)
    with pytest.raises(shardhub.UsageError, match="cannot be followed") as error:
        shardhub.serve(f"{versions.shards[0]}@{'0' * 40}", settings)
    assert versions.shards[0] in error.value.hint


def test_head_says_which_side_is_older(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command for each way out; without the Hub it says that it could not be asked."""
    old_shard, new_shard = (manifest.stages[0].locations[0] for manifest in (versions.old, versions.new))
    notes = Notes()
    with shardhub.serve(f"{old_shard.repo}@{old_shard.commit}", watcher=notes) as node:  # type: ignore[union-attr]
        assert notes.has(
            f"{versions.repo} is at {versions.new_commit[:12]} on the Hub, and this node serves a stage of"
        )
        assert notes.has(f"of the older {versions.old_commit[:12]}: heads of the newer version refuse it")
        assert notes.has(f"shardhub serve {versions.shards[0]}. To stay with it, give heads {versions.repo}@")
        error = refusal(versions.repo, node)
        assert f"{versions.repo} is at {versions.new_commit[:12]} on the Hub" in error.why
        assert f"the node serves the older {versions.old_commit[:12]}" in error.why
        assert f"shardhub serve {versions.shards[0]}" in error.hint
        assert f"{versions.repo}@{versions.old_commit[:12]}" in error.hint
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        offline = refusal(versions.repo, node)
        assert "The Hub could not be asked which side is older" in offline.why
        monkeypatch.delenv("HF_HUB_OFFLINE")
    notes = Notes()
    with shardhub.serve(f"{new_shard.repo}@{new_shard.commit}", watcher=notes) as node:  # type: ignore[union-attr]
        assert not notes.has("on the Hub")
        error = refusal(f"{versions.repo}@{versions.old_commit[:12]}", node)
        assert f"this command runs the older {versions.old_commit[:12]}" in error.why
        assert "the node serves that version" in error.why
        assert f"{versions.repo}@{versions.new_commit[:12]}" in error.hint
        assert f"shardhub serve {old_shard.repo}@{old_shard.commit[:12]}" in error.hint  # type: ignore[union-attr]


def test_a_repos_history_tells_versions_of_other_models(versions: Versions) -> None:
    """A version made from another model is known by its stages; a stage of no version is another pipeline's."""
    settings = {"start": 0, "is_same_model": False}
    place = parse_reference(versions.repo)
    assert isinstance(place, Reference)

    def explained(digest: str) -> shardhub.OtherPipeline:
        error = shardhub.OtherPipeline("It serves another.", digests=(digest,), **settings)  # type: ignore[arg-type]
        return explain_other_version(error, place, versions.new_commit, hub, Notes())

    older = explained(versions.old.stages[0].digest)
    assert f"the node serves the older {versions.old_commit[:12]}" in older.why
    assert f"shardhub serve {versions.shards[0]}" in older.hint
    assert explained("a" * 64).why == ""


def refusal(pipeline: str, node: shardhub.Node) -> shardhub.OtherPipeline:
    """The error of a head that meets a node of another version."""
    settings = shardhub.HeadSettings(pipeline=pipeline, nodes=node.address, allow_local=False)
    with pytest.raises(shardhub.OtherPipeline) as caught, shardhub.open_head(settings):
        pass
    return caught.value
