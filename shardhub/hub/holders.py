"""Weight files the Hub has already: in the target repo, or in another of ours, from which it can copy them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shardhub.errors import AccessError, Conflict, HubRefused, HubUnreachable, NotFound
from shardhub.hub.calls import HubCalls
from shardhub.hub.cluster_trust import is_of_cluster
from shardhub.hub.listed import ListedFile
from shardhub.hub.remote_repo import list_files
from shardhub.upstream.hub_client import has_xet, hub_headers, use_lfs

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

# The client's own batch size. Source: UPLOAD_BATCH_MAX_NUM_FILES, huggingface_hub 2.4.0.
_BATCH = 256
# Most repos of the same model to search; a model cut twenty ways has fewer.
_MAX_HOLDERS = 200


class Holders:
    """Which of our repos hold which weight files of a model; looked up on first use.

    Args:
        calls: The Hub.
        namespace: Namespace of the repos.
        tag: Tag of the model's shards.
        own: Repos whose files are known already, such as the targets of this push.
    """

    def __init__(self, calls: HubCalls, namespace: str, tag: str, own: Mapping[str, Mapping[str, ListedFile]]) -> None:
        self._calls = calls
        self._namespace = namespace
        self._tag = tag
        self._own = own
        self._by_sha256: dict[str, tuple[str, ListedFile]] | None = None  # listed on first use

    def find(self, sha256: str) -> tuple[str, ListedFile] | None:
        """A repo and its file with this sha256, or None."""
        if self._by_sha256 is None:
            self._by_sha256 = self._look()
        return self._by_sha256.get(sha256)

    def _look(self) -> dict[str, tuple[str, ListedFile]]:
        api = self._calls.api

        def listed() -> list[tuple[str, str]]:
            models = api.list_models(author=self._namespace, filter=self._tag, limit=_MAX_HOLDERS, expand=["sha"])
            return [(info.id, str(info.sha)) for info in models if info.sha]

        repos = {repo: dict(files) for repo, files in self._own.items()}
        what = f"looking for shards of this model in {self._namespace}"
        for repo, commit in self._calls.run(listed, what=what):
            if repo not in repos:
                try:
                    repos[repo] = list_files(self._calls, repo, commit)
                except NotFound:  # deleted since it was listed
                    continue
        return {
            file.sha256: (repo, file)
            for repo, files in repos.items()
            for file in files.values()
            if file.sha256 is not None
        }


def present(calls: HubCalls, repo: str, sizes: Mapping[str, int]) -> set[str]:
    """Find which objects, by sha256, were uploaded to a repo, committed or not.

    The LFS batch call tells: it returns no upload URL for an object that the repo has.

    Args:
        calls: The Hub.
        repo: The repo.
        sizes: Size in bytes by sha256.
    """
    from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info

    api, known = calls.api, set[str]()
    headers = hub_headers(api)
    objects = sorted(sizes.items())
    for start in range(0, len(objects), _BATCH):
        infos = [
            UploadInfo(size=size, sample=b"", sha256=bytes.fromhex(sha256))
            for sha256, size in objects[start : start + _BATCH]
        ]

        def ask(infos: list[UploadInfo] = infos) -> list[dict[str, object]]:
            actions, _, _ = post_lfs_batch_info(
                upload_infos=infos,
                token=None,  # it is in the headers
                headers=headers,
                repo_type="model",
                repo_id=repo,
                endpoint=api.endpoint,
            )
            return actions

        answered = calls.run(ask, what=f"checking which files {repo} has", repo=repo)
        known |= {str(item["oid"]) for item in answered if item.get("actions") is None}
    return known & set(sizes)


def give(calls: HubCalls, source: str, target: str, files: Collection[ListedFile]) -> set[str]:
    """Have the Hub copy objects from one repo to another; returns the sha256 of those it copied.

    The others have to be uploaded, so a Hub that cannot copy costs only time.

    Source: `_duplicate_lfs_files`, huggingface_hub 2.4.0, which we do not call because it refuses files without a Xet
    hash before it asks the Hub.
    """
    from huggingface_hub import get_session, hf_raise_for_status

    api, given = calls.api, set[str]()
    url = f"{api.endpoint}/api/models/{source}/lfs-files/duplicate"
    by_path = sorted(files, key=lambda file: file.path)
    for start in range(0, len(by_path), _BATCH):
        part = by_path[start : start + _BATCH]
        items = [
            {"sha256": file.sha256, "filename": file.path, **({"xetHash": file.xet_hash} if file.xet_hash else {})}
            for file in part
        ]
        body: dict[str, object] = {"target": {"type": "model", "name": target}, "files": items}

        def ask(body: dict[str, object] = body) -> dict[str, object]:
            response = get_session().post(url, headers=hub_headers(api), json=body)
            hf_raise_for_status(response)
            answer = response.json()
            return answer if isinstance(answer, dict) else {}

        try:
            answer = calls.run(ask, what=f"copying from {source} to {target} on the Hub", repo=source)
        except (NotFound, HubRefused, HubUnreachable, Conflict, AccessError):
            return given
        failed = answer.get("failed")
        refused = {str(item.get("sha256")) for item in failed} if isinstance(failed, list) else set()
        given |= {file.sha256 for file in part if file.sha256 is not None and file.sha256 not in refused}
    return given


@contextmanager
def own_transfer() -> Iterator[None]:
    """Limit what `agree_on_transfer` decides to this block: it holds for one Hub, and the process may use others."""
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def agree_on_transfer(calls: HubCalls, repo: str) -> None:
    """Have the client upload as this Hub accepts it: over Xet, its default, or over LFS if the Hub has no Xet.

    Called within `own_transfer`. A Hub of this machine's cluster is sent files over LFS, too: Xet makes its own
    connections, which know the system's roots only.

    The client decides by itself, and fails on a private Hub. Source: `is_xet_available`, huggingface_hub 2.4.0, which
    reads this constant at every upload.

    Args:
        calls: The Hub.
        repo: A repo that the token may write.
    """
    from huggingface_hub import constants, get_session, hf_raise_for_status

    if not has_xet():
        return
    hub = urlsplit(calls.api.endpoint)
    if is_of_cluster(hub.scheme, hub.hostname or "", hub.port):
        constants.HF_HUB_DISABLE_XET = True
        return
    url = f"{calls.api.endpoint}/api/models/{repo}/xet-write-token/main"

    def ask() -> bool:
        response = get_session().get(url, headers=hub_headers(calls.api))
        if response.status_code in (400, 404):
            return False
        hf_raise_for_status(response)
        return True

    if not calls.run(ask, what=f"asking {repo} for upload URLs", repo=repo):
        constants.HF_HUB_DISABLE_XET = True


def to_upload(path: str, file: Path, sha256: str) -> CommitOperationAdd:
    """The operation that uploads a weight file outside git, whatever the repo's `.gitattributes` say.

    Its sha256 is known from the pass that wrote the file, so the client need not read the file again.
    """
    from huggingface_hub import CommitOperationAdd

    operation = CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(file))
    operation.upload_info.sha256 = bytes.fromhex(sha256)
    use_lfs(operation)
    return operation


def placed(path: str, sha256: str, size_bytes: int) -> CommitOperationAdd:
    """The operation that commits a weight file whose bytes the repo has already.

    A test checks that the client commits it without sending any bytes.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.lfs import UploadInfo

    operation = CommitOperationAdd(path_in_repo=path, path_or_fileobj=b"")
    operation.upload_info = UploadInfo(size=size_bytes, sample=b"", sha256=bytes.fromhex(sha256))
    use_lfs(operation, is_uploaded=True)
    return operation
