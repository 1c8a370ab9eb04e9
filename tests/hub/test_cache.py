"""The cache's content, and deletion: never of files that are in use or that others need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from shardhub.errors import Conflict, IntegrityError
from shardhub.hub.cache import Cache, default_cache
from shardhub.hub.evict import held, make_room, prune, remove
from shardhub.hub.fetch import Fetcher
from shardhub.hub.ranges import Patience
from shardhub.hub.reference import Reference
from shardhub.locks import is_used, locked_at_once
from shardhub.shard import read_shard
from tests.hub import faulty
from tests.hub.published import OVER_LFS, Published

pytestmark = OVER_LFS


def shard_of(published: Published, index: int) -> Reference:
    return Reference(repo=published.shards[index], revision=published.commits[index])


def size(cache: Cache) -> int:
    return sum(path.stat().st_size for path in cache.blobs.iterdir())


def test_held(fetcher: Fetcher, published: Published) -> None:
    """The cache lists shards with their layers, pipelines, sizes, and what is in use."""
    assert held(fetcher.cache) == []
    for index in range(2):
        fetcher.fetch(shard_of(published, index))
    fetcher.fetch(Reference(repo=published.pipeline))
    fetcher.cache.release()
    snapshots = held(fetcher.cache)
    assert [(one.kind, one.repo, one.start, one.stop) for one in snapshots] == [
        ("pipeline", published.pipeline, 0, 6),
        ("shard", published.shards[0], 0, 3),
        ("shard", published.shards[1], 3, 6),
    ]
    assert snapshots[1].size_bytes > published.manifest.stages[0].size_bytes
    assert not any(one.is_used for one in snapshots)


def test_damaged_snapshot_is_reported(fetcher: Fetcher, published: Published) -> None:
    """A snapshot that lost a file is listed as damaged, not as a shard."""
    folder = fetcher.fetch(shard_of(published, 0))
    next(folder.glob("*.safetensors")).resolve().unlink()
    assert [one.kind for one in held(fetcher.cache)] == ["damaged"]


def test_removed_shard_leaves_what_others_need(fetcher: Fetcher, published: Published) -> None:
    """Removing a shard keeps the files that another shard has."""
    second = fetcher.fetch(shard_of(published, 1))
    before = size(fetcher.cache)
    fetcher.fetch(shard_of(published, 0))
    fetcher.cache.release()
    freed = remove(fetcher.cache, published.shards[0])
    assert freed > 0
    assert size(fetcher.cache) == before
    assert fetcher.cache.is_whole(second)
    assert read_shard(second).digest == published.manifest.stages[1].digest


HOLD = """
import sys
from pathlib import Path
from shardhub.hub.cache import Cache
Cache(Path(sys.argv[1])).use(Path(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


def test_shard_in_use_is_not_removed(fetcher: Fetcher, published: Published, said: list[str]) -> None:
    """A shard that a process serves is neither removed nor evicted; once the process ends, both work."""
    folder = fetcher.fetch(shard_of(published, 0))
    fetcher.cache.release()
    arguments = [sys.executable, "-c", HOLD, str(fetcher.cache.root), str(folder)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "held\n"
        assert is_used(folder)
        with pytest.raises(Conflict, match="in use"):
            remove(fetcher.cache, published.shards[0])
        make_room(fetcher.cache, 1000, 10, keep=(), notice=said.append)
        assert folder.is_dir()
        assert "over its limit" in said[-1]
        child.kill()
    assert remove(fetcher.cache, published.shards[0]) > 0


def test_limit_evicts_what_was_used_longest_ago(
    reader: HfApi, published: Published, tmp_path: Path, patience: Patience, said: list[str]
) -> None:
    """With room for one shard and a half, the second shard evicts the first and reports it."""
    cache = Cache(tmp_path / "c")
    limit = published.manifest.stages[0].size_bytes * 3 // 2
    fetcher = Fetcher(lambda: reader, cache, patience=patience, limit_bytes=limit)
    fetcher.fetch(shard_of(published, 0))
    cache.release()
    fetcher.fetch(shard_of(published, 1))
    assert [one.repo for one in held(cache)] == [published.shards[1]]
    assert size(cache) <= limit
    assert f"deleted {published.shards[0]}" in said[-1]


def test_limit_keeps_files_that_are_about_to_be_needed(fetcher: Fetcher, published: Published, said: list[str]) -> None:
    """Files that the next shard needs stay when the shard that fetched them is evicted."""
    folder = fetcher.fetch(shard_of(published, 0))
    fetcher.cache.release()
    keep = {path.resolve().name for path in folder.glob("*.safetensors")}
    make_room(fetcher.cache, 1, 0, keep=keep, notice=said.append)
    assert held(fetcher.cache) == []
    assert {path.name for path in fetcher.cache.blobs.iterdir()} == keep


def test_prune(fetcher: Fetcher, published: Published, net: faulty.Network) -> None:
    """Pruning removes partial fetches and unreferenced files, and keeps whole shards."""
    folder = fetcher.fetch(shard_of(published, 0))
    cache = fetcher.cache
    (cache.blobs / ("e" * 64)).write_bytes(b"x" * 100)
    (cache.root / "partials" / ("f" * 64)).write_bytes(b"x" * 10)
    (cache.repo_folder("a/b") / f".{'0' * 40}.partial").mkdir(parents=True)
    assert prune(cache) == 110
    assert prune(cache) == 0
    assert cache.is_whole(folder)
    assert not list(cache.root.glob("repos/*/*/.*.partial"))


def test_nothing_is_deleted_during_a_fetch(fetcher: Fetcher, published: Published) -> None:
    """Deleting and fetching exclude each other."""
    fetcher.cache.prepare()
    with locked_at_once(fetcher.cache.use_lock, shared=True), pytest.raises(Conflict, match="fetching"):
        prune(fetcher.cache)
    with locked_at_once(fetcher.cache.use_lock, shared=False), pytest.raises(Conflict, match="deleting"):
        fetcher.fetch(shard_of(published, 0))


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache folder is SHARDHUB_CACHE, or else this user's cache folder."""
    monkeypatch.delenv("SHARDHUB_CACHE", raising=False)
    assert default_cache().name == "shardhub"
    monkeypatch.setenv("SHARDHUB_CACHE", str(tmp_path / "c"))
    assert Cache().root == tmp_path / "c"


def test_names_cannot_leave_the_cache(tmp_path: Path) -> None:
    """A malformed digest is refused before it becomes a path; a revision is a single path component."""
    cache = Cache(tmp_path / "c")
    with pytest.raises(IntegrityError):
        cache.blob("../x")
    cache.remember("a/b", "refs/pr/../../../x", "0" * 40)
    assert cache.recalled("a/b", "refs/pr/../../../x") == "0" * 40
    assert [path.parent.name for path in cache.root.rglob("*") if path.is_file()] == ["refs"]
