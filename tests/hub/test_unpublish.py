"""Taking pipelines off the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shardhub.errors import AccessError, UsageError
from shardhub.hub.unpublish import Removal, find_removal, remove
from shardhub.localhub.server import RunningHub
from shardhub.manifest import RepoLocation, encode
from tests.checkpoints import write_checkpoint
from tests.hub.pushing import OVER_LFS, Pusher, Wire, pushing_hub

pytestmark = OVER_LFS


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[RunningHub, Wire]]:
    with pushing_hub(tmp_path / "hub") as served:
        yield served


@pytest.fixture
def ann(served: tuple[RunningHub, Wire], tmp_path: Path) -> Pusher:
    return Pusher(served[0], tmp_path / "cache")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", 8)
    return tmp_path / "model"


def repos(ann: Pusher) -> set[str]:
    return {info.id for info in ann.api.list_models(author="ann")}


def test_unpublish_deletes_manifest_then_shards(ann: Pusher, model: Path, served: tuple[RunningHub, Wire]) -> None:
    ann.push(model, [4])
    ann.push(model, [4], name="other")
    removal = find_removal(ann.calls, "ann/m-pipeline")
    assert removal == Removal(pipeline="ann/m-pipeline", shards=("ann/m-shard-0", "ann/m-shard-1"), kept=())
    deleted: list[str] = []
    remove(ann.calls, removal, progress=deleted.append)
    assert deleted == ["ann/m-pipeline", "ann/m-shard-0", "ann/m-shard-1"]
    assert repos(ann) == {"ann/other-pipeline", "ann/other-shard-0", "ann/other-shard-1"}


def test_unpublish_keeps_shards_that_others_name(ann: Pusher, model: Path) -> None:
    """A shard's repo that another manifest names is kept."""
    first = ann.push(model, [4])
    second = ann.push(model, [4, 6], name="n")
    manifest = ann.job(model, [4, 6], name="n").manifest(
        second.stage_digests,
        [RepoLocation(repo=at.repo, commit=at.commit) for at in (first.shards[0], *second.shards[1:])],
    )
    ann.api.upload_file(path_or_fileobj=encode(manifest), path_in_repo="shardhub.json", repo_id="ann/n-pipeline")
    removal = find_removal(ann.calls, "ann/m-pipeline")
    assert removal.shards == ("ann/m-shard-1",)
    assert [(kept.repo, kept.why) for kept in removal.kept] == [("ann/m-shard-0", "ann/n-pipeline names it")]
    remove(ann.calls, removal)
    assert "ann/m-shard-0" in repos(ann)


def test_unpublish_after_a_replacement_takes_the_old_shards_too(ann: Pusher, model: Path) -> None:
    ann.push(model, [2, 4, 6])
    ann.push(model, [4], replace=True)
    removal = find_removal(ann.calls, "ann/m-pipeline")
    assert removal.shards == tuple(f"ann/m-shard-{index}" for index in range(4))


def test_unpublish_goes_on_after_a_kill(ann: Pusher, model: Path) -> None:
    """If a killed run removed only the manifest, running the command again removes the shards."""
    ann.push(model, [4])
    ann.api.delete_repo("ann/m-pipeline")
    ann.api.delete_repo("ann/m-shard-0")
    removal = find_removal(ann.calls, "ann/m-pipeline")
    assert removal == Removal(pipeline=None, shards=("ann/m-shard-1",), kept=())
    remove(ann.calls, removal)
    assert repos(ann) == set()
    with pytest.raises(UsageError, match="does not exist"):
        find_removal(ann.calls, "ann/m-pipeline")


def test_unpublish_refuses_repos_that_are_not_pipelines(ann: Pusher, model: Path) -> None:
    ann.api.create_repo("ann/thesis-pipeline")
    ann.api.upload_file(path_or_fileobj=b"1", path_in_repo="thesis.txt", repo_id="ann/thesis-pipeline")
    with pytest.raises(UsageError, match="is not a pipeline"):
        find_removal(ann.calls, "ann/thesis-pipeline")
    with pytest.raises(UsageError, match="not the name of a pipeline's repo"):
        find_removal(ann.calls, "ann/m-shard-0")


def test_unpublish_keeps_a_repo_that_became_something_else(ann: Pusher, model: Path) -> None:
    ann.push(model, [4])
    ann.api.delete_repo("ann/m-shard-1")
    ann.api.create_repo("ann/m-shard-1")
    ann.api.upload_file(path_or_fileobj=b"1", path_in_repo="thesis.txt", repo_id="ann/m-shard-1")
    removal = find_removal(ann.calls, "ann/m-pipeline")
    assert removal.shards == ("ann/m-shard-0",)
    assert [kept.why for kept in removal.kept] == ["it is no longer a shard"]


def test_unpublish_by_somebody_else_is_refused(ann: Pusher, model: Path, served, tmp_path: Path) -> None:
    ann.push(model, [4])
    bob = Pusher(served[0], tmp_path / "bob", user="bob")
    with pytest.raises(AccessError):
        remove(bob.calls, find_removal(bob.calls, "ann/m-pipeline"))
    assert len(repos(ann)) == 3
