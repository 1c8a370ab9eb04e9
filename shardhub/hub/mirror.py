"""Bringing a repo from one Hub to another: the same files, byte for byte."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from shardhub.errors import DigestMismatch
from shardhub.hub.cache import Cache
from shardhub.hub.calls import HubCalls
from shardhub.hub.download import RepoFile, fetch_blob
from shardhub.hub.holders import agree_on_transfer, own_transfer, to_upload
from shardhub.hub.listed import ListedFile
from shardhub.hub.mirror_target import file_title, is_same, repo_title
from shardhub.hub.pinned_repo import PinnedRepo, find_commit
from shardhub.hub.ranges import Patience

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

# Files without a sha256 are kept in git, where the public Hub accepts none of more than 10 MB.
_MAX_GIT_BYTES = 16 << 20
# Files without a sha256 in one commit, whose request holds them all: there may be thousands.
_BATCH_BYTES, _BATCH_FILES = 32 << 20, 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorProgress:
    """How far a mirroring is: `file` is under way, and `done_bytes` of all `total_bytes` have come."""

    file: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored:
    """A repo that was brought over.

    Attributes:
        repo, commit: The repo, and its commit that has the source's files.
        source_commit: The source's commit.
        num_files, size_bytes: All its files.
        sent_bytes: Bytes of the files that were not there before.
    """

    repo: str
    commit: str
    source_commit: str
    num_files: int
    size_bytes: int
    sent_bytes: int


@own_transfer()
def mirror(
    source: PinnedRepo,
    calls: HubCalls,
    target: str,
    cache: Cache,
    *,
    patience: Patience,
    progress: Callable[[MirrorProgress], None],
) -> Mirrored:
    """Make a repo's newest commit hold exactly the files of a source's commit.

    Each large file is fetched, checked against its sha256, and committed, before the next: a killed run is resumed by
    another, in the middle of a file. Small files follow, many in a commit, and the last commit deletes what the source
    does not have.

    Args:
        source: The source's commit, with the files of all folders.
        calls: The target's Hub.
        target: The target's repo, made or checked by `prepare_target`.
        cache: A cache of its own, where one file at a time is kept.
        patience: How long to wait for the source's Hub.
        progress: Called as bytes come.

    Raises:
        DigestMismatch: The bytes were wrong twice, or the target's Hub lists other files afterwards.
        As `fetch_blob`, `PinnedRepo.read` and `hub_failures`.
    """
    there = _newest(calls, target, patience)
    missing = [file for path, file in source.files.items() if not is_same(file, there.files.get(path))]
    total = sum(file.size_bytes for file in missing)
    done = 0
    agree_on_transfer(calls, target)
    cache.prepare()
    small: list[ListedFile] = []
    for file in missing:
        if file.sha256 is None:
            small.append(file)
            continue
        path, sha256 = file.path, file.sha256

        def add_bytes(count: int, path: str = path) -> None:
            nonlocal done
            done += count
            progress(MirrorProgress(file=path, done_bytes=done, total_bytes=total))

        blob = fetch_blob(
            [RepoFile(source, path)],
            sha256=sha256,
            cache=cache,
            check=lambda _: None,
            notice=patience.notice,
            progress=add_bytes,
        )
        with _named(blob, path) as link:
            _commit(calls, target, [to_upload(path, link, sha256)], file_title(source, path))
        blob.unlink(missing_ok=True)
    _finish(source, calls, target, small, there.files)
    made = _newest(calls, target, patience)
    _check(source, made)
    return Mirrored(
        repo=target,
        commit=made.commit,
        source_commit=source.commit,
        num_files=len(source.files),
        size_bytes=sum(file.size_bytes for file in source.files.values()),
        sent_bytes=total,
    )


@contextmanager
def _named(blob: Path, path: str) -> Iterator[Path]:
    """A link to a blob with its file's name, by which the client labels its progress bar."""
    with tempfile.TemporaryDirectory(prefix="shardhub-mirror-") as folder:
        link = Path(folder, PurePosixPath(path).name)
        link.symlink_to(blob.absolute())
        yield link


def _newest(calls: HubCalls, repo: str, patience: Patience) -> PinnedRepo:
    commit = find_commit(calls.api, repo, None, patience)
    return PinnedRepo(calls.api, repo, commit, patience, has_folders=True)


def _finish(
    source: PinnedRepo, calls: HubCalls, target: str, small: list[ListedFile], before: Mapping[str, ListedFile]
) -> None:
    """Commit the small files, and delete what the source does not have."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    message = repo_title(source)
    for batch in _batches(small):
        adds: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=source.read(file.path, _MAX_GIT_BYTES))
            for file in batch
        ]
        _commit(calls, target, adds, message)
    if gone := [path for path in before if path not in source.files]:
        _commit(calls, target, [CommitOperationDelete(path_in_repo=path) for path in gone], message)


def _batches(small: Sequence[ListedFile]) -> Iterator[list[ListedFile]]:
    """Files that one commit can hold; at least one in each."""
    batch: list[ListedFile] = []
    size = 0
    for file in small:
        if batch and (size + file.size_bytes > _BATCH_BYTES or len(batch) == _BATCH_FILES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size_bytes
    if batch:
        yield batch


def _commit(
    calls: HubCalls, repo: str, operations: list[CommitOperationAdd | CommitOperationDelete], message: str
) -> None:
    calls.run(
        lambda: calls.api.create_commit(repo, operations, commit_message=message),
        what=f"committing to {repo}",
        repo=repo,
    )


def _check(source: PinnedRepo, made: PinnedRepo) -> None:
    """Check that the target's Hub lists the source's files.

    Raises:
        DigestMismatch: It lists others.
    """
    wrong = [
        path
        for path, file in source.files.items()
        if (there := made.files.get(path)) is None
        or there.size_bytes != file.size_bytes
        or (file.sha256 is not None and there.sha256 != file.sha256)
        or (file.sha256 is None and there.sha256 is None and there.git_oid != file.git_oid)
    ]
    wrong += [path for path in made.files if path not in source.files]
    if wrong:
        raise DigestMismatch(
            f"{made.repo} does not hold the files of {source.repo}.",
            why=f"{len(wrong)} files differ, the first being {wrong[0]}.",
            hint="Somebody may have changed it meanwhile. Run the same command again.",
        )
