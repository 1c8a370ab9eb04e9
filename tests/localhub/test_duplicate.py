"""Copying objects between repos: only what the caller may read, only to repos the caller may write."""

from __future__ import annotations

import hashlib

import httpx2
import pytest
from huggingface_hub import HfApi

from shardhub.localhub.server import RunningHub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

WEIGHTS = bytes(range(256)) * 64
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def source(api: HfApi, repo: str) -> str:
    """A private repo of ann's with one LFS file, and another one that was deleted."""
    api.upload_file(path_or_fileobj=WEIGHTS[1:], path_in_repo="old.safetensors", repo_id=repo)
    api.delete_file("old.safetensors", repo)
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.safetensors", repo_id=repo)
    return repo


def ask(api: HfApi, source: str, target: str, sha256: str = SHA256) -> httpx2.Response:
    return httpx2.post(
        f"{api.endpoint}/api/models/{source}/lfs-files/duplicate",
        headers={"Authorization": f"Bearer {api.token}"},
        json={"target": {"type": "model", "name": target}, "files": [{"sha256": sha256, "filename": "x"}]},
        timeout=60,
    )


def commit(api: HfApi, repo: str, sha256: str = SHA256) -> int:
    line = '{"key":"header","value":{"summary":"c"}}\n' + (
        f'{{"key":"lfsFile","value":{{"path":"w.safetensors","algo":"sha256","oid":"{sha256}"}}}}\n'
    )
    url = f"{api.endpoint}/api/models/{repo}/commit/main"
    return httpx2.post(url, headers={"Authorization": f"Bearer {api.token}"}, content=line, timeout=60).status_code


def test_given_objects_can_be_committed(api: HfApi, source: str) -> None:
    api.create_repo("ann/target")
    assert commit(api, "ann/target") == 400
    answer = ask(api, source, "ann/target")
    assert (answer.status_code, answer.json()) == (200, {"failed": []})
    assert commit(api, "ann/target") == 200


def test_what_no_branch_or_tag_holds_is_not_given(api: HfApi, source: str) -> None:
    """An object that was deleted from its branch cannot be copied; one that a tag holds can be."""
    api.create_repo("ann/target")
    gone = hashlib.sha256(WEIGHTS[1:]).hexdigest()
    assert [item["sha256"] for item in ask(api, source, "ann/target", gone).json()["failed"]] == [gone]
    assert commit(api, "ann/target", gone) == 400
    before = api.list_repo_commits(source)[2].commit_id
    api.create_tag(source, tag="old", revision=before)
    assert ask(api, source, "ann/target", gone).json() == {"failed": []}


def test_private_objects_are_not_given_to_others(hub: RunningHub, api: HfApi, source: str) -> None:
    """Copying needs read access to the source and write access to the target."""
    bob = HfApi(endpoint=hub.endpoint, token=hub.token("bob"))
    bob.create_repo("bob/target")
    assert ask(bob, source, "bob/target").status_code == 404
    assert ask(api, source, "bob/target").status_code == 404
    bob.update_repo_settings("bob/target", private=False)
    assert ask(api, source, "bob/target").status_code == 403
    assert commit(bob, "bob/target") == 400


@pytest.mark.parametrize("target", ["", "ann", "ann/..", "ann/absent"])
def test_bad_targets_are_refused(api: HfApi, source: str, target: str) -> None:
    assert ask(api, source, target).status_code in {400, 404}
