"""A repo at a commit: its files by name, and their bytes checked against its listing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from shardhub.errors import FormatError, HubUnreachable, NotFound, UsageError
from shardhub.hub.client import is_offline
from shardhub.hub.failures import hub_failures
from shardhub.hub.listed import ListedFile, listed_file, read_listed
from shardhub.hub.ranges import Patience, RemoteFile
from shardhub.hub.retry import with_retries
from shardhub.hub.whole_answers import WholeAnswers
from shardhub.naming import COMMIT_PATTERN, PLAIN_FILE_PATTERN, SHORT_COMMIT_PATTERN

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

# Timeout of an answer about a repo; its files have a limit of their own.
_INFO_TIMEOUT_S = 10.0
# A longer listing is an attack. The largest shard that the format allows has 65,536 files.
_MAX_FILES = 100_000
# What an error shows of commits that begin alike.
_COMMITS_SHOWN = 4
_DIGITS_SHOWN = 20


def find_commit(api: HfApi, repo: str, revision: str | None, patience: Patience) -> str:
    """The commit that a revision resolves to now; the newest of `main` without a revision.

    Raises:
        NotFound, AccessError: As `hub_failures`.
        HubUnreachable: There is no answer or an unreadable one, or the network must not be used.
    """
    if is_offline():
        raise HubUnreachable(
            f"{repo} cannot be reached.", why="HF_HUB_OFFLINE is set.", hint="Unset it, or use what is already cached."
        )
    what = f"looking for {repo}"

    def ask() -> str | None:
        return api.repo_info(repo, revision=revision, timeout=_INFO_TIMEOUT_S).sha

    def call(request: Callable[[], T]) -> T:
        with hub_failures(what, api=api, repo=repo, revision=revision):
            return with_retries(
                request, what=what, notice=patience.notice, sleep=patience.sleep, num_tries=patience.num_tries
            )

    try:
        commit = call(ask)
    except NotFound as error:  # a branch or tag of that name comes first
        if revision is None or not re.fullmatch(SHORT_COMMIT_PATTERN, revision):
            raise
        commit = _only_commit(repo, revision, call(lambda: _commits_like(api, repo, revision)), error)
    if commit is None or not re.fullmatch(COMMIT_PATTERN, commit):
        raise HubUnreachable(
            f"{api.endpoint} did not name a commit of {repo}.", why=f"It answered {str(commit)[:60]!r}."
        )
    return commit


def _commits_like(api: HfApi, repo: str, digits: str) -> list[str]:
    """Commits of a repo's branches, and those that tags name, that begin with these digits."""
    refs = api.list_repo_refs(repo)
    commits = {tag.target_commit for tag in refs.tags}
    for branch in refs.branches:
        commits.update(entry.commit_id for entry in api.list_repo_commits(repo, revision=branch.name))
    return sorted(commit for commit in commits if commit.startswith(digits))


def _only_commit(repo: str, digits: str, commits: Sequence[str], cause: NotFound) -> str:
    """The one commit that begins with these digits.

    Raises:
        NotFound: There is none.
        UsageError: There are several.
    """
    if len(commits) == 1:
        return commits[0]
    if commits:
        raise UsageError(
            f"{repo} has {len(commits)} commits that start with {digits}.",
            why=f"They are {', '.join(commit[:_DIGITS_SHOWN] for commit in commits[:_COMMITS_SHOWN])}.",
            hint="Give more digits of the commit.",
        ) from cause
    raise NotFound(
        f"{repo} does not have the revision {digits!r}.",
        why="It is neither a branch nor a tag, and none of its branches has a commit that starts with these digits.",
        hint="Leave out @REVISION for the newest, or give a branch, a tag, or 7 or more digits of a commit.",
    ) from cause


class PinnedRepo:
    """A repo at a commit.

    Args:
        api: The Hub's client.
        repo, commit: The repo and commit.
        patience: How long to wait for the Hub.
        has_folders: Whether files in folders, and with any names, are listed too.
    """

    def __init__(self, api: HfApi, repo: str, commit: str, patience: Patience, *, has_folders: bool = False) -> None:
        self.repo = repo
        self.commit = commit
        self._api = api
        self._patience = patience
        self._has_folders = has_folders
        self._whole_answers = WholeAnswers()

    def beside(self, repo: str, commit: str, *, api: HfApi | None = None) -> PinnedRepo:
        """Another repo, of the same Hub or of another one."""
        return PinnedRepo(api or self._api, repo, commit, self._patience)

    @cached_property
    def files(self) -> Mapping[str, ListedFile]:
        """Files by name; those in folders or with odd names only if `has_folders`."""
        from huggingface_hub.hf_api import RepoFile

        what = f"listing {self.repo}"

        def ask() -> dict[str, ListedFile]:
            listing: dict[str, ListedFile] = {}
            for entry in self._api.list_repo_tree(self.repo, revision=self.commit, recursive=self._has_folders):
                if isinstance(entry, RepoFile) and (self._has_folders or re.fullmatch(PLAIN_FILE_PATTERN, entry.path)):
                    listing[entry.path] = listed_file(entry, self.repo)
                if len(listing) > _MAX_FILES:
                    raise FormatError(f"{self.repo} has more than {_MAX_FILES} files.")
            return listing

        with hub_failures(what, api=self._api, repo=self.repo, revision=self.commit):
            return with_retries(ask, what=what, notice=self._patience.notice, sleep=self._patience.sleep, num_tries=2)

    def file(self, name: str) -> ListedFile:
        """A file's entry in the listing.

        Raises:
            NotFound: The repo has no such file.
        """
        if name not in self.files:
            raise NotFound(
                f"{self.repo} at commit {self.commit[:12]} does not contain {name}.",
                why="The repo was not published by shardhub, or publishing was interrupted.",
            )
        return self.files[name]

    def open(self, name: str, *, patience: Patience | None = None) -> RemoteFile:
        """Open a file to read it by ranges."""
        listed = self.file(name)
        return RemoteFile(
            self._api,
            self.repo,
            self.commit,
            name,
            size_bytes=listed.size_bytes,
            version=listed.version,
            patience=patience or self._patience,
            whole_answers=self._whole_answers,
        )

    def read(self, name: str, limit_bytes: int) -> bytes:
        """Read a small file and check it against the listing's digest.

        Raises:
            NotFound: The repo has no such file.
            FormatError: The file is larger than `limit_bytes`.
            DigestMismatch: The bytes were wrong twice.
        """
        return read_listed(self.file(name), lambda: self.open(name), repo=self.repo, limit_bytes=limit_bytes)
