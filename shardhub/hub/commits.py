"""One commit on top of a repo's known state, whose answer may be lost, and the tags of what it replaces."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from shardhub.errors import Conflict
from shardhub.hub.calls import HubCalls
from shardhub.hub.remote_repo import RemoteRepo, look

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

# Prefix of the tags that keep the commits before a replacement reachable.
_OLD_TAG = "shardhub-before-"


def commit_on(
    calls: HubCalls,
    there: RemoteRepo,
    documents: Mapping[str, bytes],
    message: str,
    is_done: Callable[[RemoteRepo], bool],
    *,
    weights: Sequence[CommitOperationAdd] = (),
    deleted: Collection[str] = (),
) -> str:
    """Make one commit on top of a repo's known state; returns its id.

    Args:
        calls: The Hub.
        there: The repo's known state, whose commit is the parent.
        documents: Small files, by path.
        message: Title of the commit.
        is_done: Whether a repo holds this already, because an earlier commit was made although its answer was lost.
        weights: Operations that commit weight files whose bytes the repo has.
        deleted: Paths to delete.

    Raises:
        Conflict: The repo is at another commit with other contents.
        AccessError, HubUnreachable, HubRefused: The Hub does not answer, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    def send() -> str:
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *weights,
            *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=data) for path, data in documents.items()),
            *(CommitOperationDelete(path_in_repo=path) for path in sorted(deleted)),
        ]
        return calls.api.create_commit(there.repo, operations, commit_message=message, parent_commit=there.commit).oid

    try:
        return calls.run(send, what=f"committing to {there.repo}", repo=there.repo)
    except Conflict as error:
        remote = look(calls, there.repo)
        if remote is not None and is_done(remote):
            return remote.commit
        raise changed(
            there.repo, f"it was at {there.commit[:8]} when this push read it, and has changed since"
        ) from error


def changed(repo: str, why: str) -> Conflict:
    """The error for a repo that somebody else changed."""
    return Conflict(
        f"{repo} was changed during this push.",
        why=f"{why[:1].upper()}{why[1:]}.",
        hint="Run the same command again: it starts from the repo's present state, and uploads nothing twice.",
    )


def keep_old(calls: HubCalls, repo: str, commit: str) -> str:
    """Tag what is replaced, so that whatever names the commit keeps working; returns the tag."""
    tag = f"{_OLD_TAG}{commit[:12]}"
    calls.run(
        lambda: calls.api.create_tag(repo, tag=tag, revision=commit, exist_ok=True), what=f"tagging {repo}", repo=repo
    )
    return tag


def is_old_tag(tag: str) -> bool:
    """Whether a replacement left this tag."""
    return tag.startswith(_OLD_TAG)
