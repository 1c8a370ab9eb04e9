"""Checking the repo that a source is mirrored to: whose files it holds, and who may read it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shardhub.errors import Conflict, NotFound, UsageError
from shardhub.hub.calls import HubCalls
from shardhub.hub.commits import keep_old
from shardhub.hub.listed import ListedFile
from shardhub.hub.pinned_repo import PinnedRepo
from shardhub.hub.push_decisions import public_unlike_asked
from shardhub.hub.ranges import Patience
from shardhub.hub.remote_repo import GITATTRIBUTES

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


def prepare_target(
    source: PinnedRepo, source_info: ModelInfo, calls: HubCalls, target: str, *, private: bool | None, replace: bool
) -> None:
    """Make the repo that a source is brought to, or check that an existing one may be overwritten.

    Args:
        source: The source's commit.
        source_info: The source's repo, with who may read it.
        calls: The target's Hub.
        target: The target's repo.
        private: Whether only its owner may read the target; None makes a new one as the source is.
        replace: Whether other contents may be replaced; the commit that holds them is then tagged.

    Raises:
        Conflict: The repo holds something else, and `replace` is false.
        UsageError: The repo can be read by everyone, and it was to be private, or the source is.
        As `HubCalls.run`.
    """
    try:
        there = calls.run(lambda: calls.api.model_info(target), what=f"looking at {target}", repo=target)
    except NotFound:
        _create(source_info, calls, target, private=private)
        return
    _check_readers(source_info, there, private=private)
    held = PinnedRepo(calls.api, target, str(there.sha), Patience(notice=calls.notice), has_folders=True)
    if _is_part_of(held, source) or _is_mirror(held, source.repo, calls):
        return
    if not replace:
        raise Conflict(
            f"{target} already exists with other contents.",
            why=f"Its newest commit does not come from {source.repo}, and {source.repo} does not have all its files.",
            hint="Give another repo with `name`, or add `replace`: the old commits are kept under a tag.",
        )
    tag = keep_old(calls, target, held.commit)
    calls.notice(f"replacing the files of {target}; the tag {tag} keeps them")


def is_same(file: ListedFile, there: ListedFile | None) -> bool:
    """Whether a file is there already; one that only one of two Hubs keeps in git counts as another."""
    if there is None or file.size_bytes != there.size_bytes:
        return False
    if file.sha256 is None and there.sha256 is None:
        return file.git_oid == there.git_oid
    return file.sha256 == there.sha256


def file_title(source: PinnedRepo, path: str) -> str:
    """Title of the commit that brings one file."""
    return f"{path} of {repo_title(source)}"


def repo_title(source: PinnedRepo) -> str:
    """Title of the commit that brings the rest; later runs know a mirror by these titles."""
    return f"{source.repo} at {source.commit}"


def _create(source_info: ModelInfo, calls: HubCalls, target: str, *, private: bool | None) -> None:
    is_private = bool(source_info.private) if private is None else private
    if source_info.private and private is None:
        calls.notice(f"{source_info.id} is private, so {target} will be, too")
    elif source_info.gated and not is_private:
        calls.notice(f"warning: {source_info.id} is gated, and {target} will not be; `private` keeps it for you alone")
    calls.run(
        lambda: calls.api.create_repo(target, private=is_private, exist_ok=True), what=f"creating {target}", repo=target
    )


def _check_readers(source_info: ModelInfo, there: ModelInfo, *, private: bool | None) -> None:
    if there.private:
        return
    if private:
        raise public_unlike_asked([there.id])
    if source_info.private and private is None:
        raise UsageError(
            f"{source_info.id} is private, and everyone can read {there.id}.",
            hint=f"Make {there.id} private in its settings, or give another repo with `name`. If everyone may read it: "
            "`shardhub hub mirror --public`.",
        )


def _is_part_of(held: PinnedRepo, source: PinnedRepo) -> bool:
    """Whether a repo has only files that the source has, too; a new repo has its .gitattributes."""
    return all(path == GITATTRIBUTES or is_same(file, source.files.get(path)) for path, file in held.files.items())


def _is_mirror(held: PinnedRepo, source: str, calls: HubCalls) -> bool:
    """Whether a repo's newest commit was made by mirroring a source."""
    commits = calls.run(
        lambda: calls.api.list_repo_commits(held.repo, revision=held.commit),
        what=f"listing the commits of {held.repo}",
        repo=held.repo,
    )
    title = commits[0].title if commits else ""
    return re.fullmatch(rf"(.+ of )?{re.escape(source)} at [0-9a-f]{{40}}", title) is not None
