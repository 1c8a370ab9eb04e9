"""The real huggingface_hub client against the local Hub, over LFS: the operations shardhub and its users need."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    ModelCard,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from shardhub.localhub.server import RunningHub

# huggingface_hub 2.4.0 sends LFS bytes in a way httpx2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

WEIGHTS = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


@pytest.fixture(autouse=True, params=["xet", "lfs"])
def transfer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the client uploads over: Xet is its default."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small shard repo's worth of files."""
    made = tmp_path / "folder"
    (made / "parity").mkdir(parents=True)
    (made / "config.json").write_text('{"a": 1}')
    (made / "README.md").write_text("---\nlicense: mit\ntags:\n- shardhub-shard\n---\n# Hello\n")
    (made / "empty.txt").write_text("")
    (made / "layer-00000.safetensors").write_bytes(WEIGHTS)
    (made / "parity" / "one.json").write_text("{}")
    return made


@pytest.fixture
def filled(api: HfApi, repo: str, folder: Path) -> str:
    """The commit of a repo that holds `folder`."""
    return api.upload_folder(repo_id=repo, folder_path=folder).oid


def test_whoami_names_the_tokens_owner(api: HfApi) -> None:
    answer = api.whoami()
    assert answer["name"] == "ann"
    assert answer["auth"]["accessToken"]["role"] == "write"


def test_whoami_without_a_token_the_hub_made_is_refused(hub: RunningHub) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(endpoint=hub.endpoint).whoami(token="hf_" + "0" * 64)
    assert status(error) == 401


def test_create_repo_takes_the_callers_namespace(api: HfApi) -> None:
    assert api.create_repo("model", private=True).repo_id == "ann/model"


def test_a_repo_is_private_unless_said_otherwise(api: HfApi) -> None:
    api.create_repo("ann/quiet")
    api.create_repo("ann/loud", private=False)
    assert api.model_info("ann/quiet").private is True
    assert api.model_info("ann/loud").private is False


def test_create_repo_twice_is_a_conflict(api: HfApi, repo: str) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(repo)
    assert status(error) == 409
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(repo.upper().replace("ANN", "ann"))
    assert status(error) == 409


def test_create_repo_with_exist_ok_returns_the_one_there(api: HfApi, repo: str) -> None:
    assert api.create_repo(repo, exist_ok=True).repo_id == repo


def test_datasets_are_apart_from_models(api: HfApi, repo: str) -> None:
    url = api.create_repo(repo, repo_type="dataset", private=True)
    assert (url.repo_type, url.repo_id) == ("dataset", repo)
    api.upload_file(path_or_fileobj=b"d", path_in_repo="d.txt", repo_id=repo, repo_type="dataset")
    assert api.file_exists(repo, "d.txt", repo_type="dataset")
    assert not api.file_exists(repo, "d.txt")
    path = hf_hub_download(repo, "d.txt", repo_type="dataset", endpoint=api.endpoint, token=api.token)
    assert Path(path).read_bytes() == b"d"


def test_repo_exists(api: HfApi, repo: str) -> None:
    assert api.repo_exists(repo)
    assert not api.repo_exists("ann/other")


def test_a_private_repo_looks_absent_to_others(hub: RunningHub, api: HfApi, filled: str, repo: str) -> None:
    for other in (HfApi(endpoint=hub.endpoint, token=hub.token("bob")), HfApi(endpoint=hub.endpoint, token=False)):
        assert not other.repo_exists(repo)
        assert [info.id for info in other.list_models()] == []
        with pytest.raises(RepositoryNotFoundError) as absent:
            other.model_info("ann/absent")
        with pytest.raises(RepositoryNotFoundError) as private:
            other.model_info(repo)
        assert private.value.server_message.replace("model", "absent") == absent.value.server_message
        with pytest.raises(RepositoryNotFoundError):
            other.hf_hub_download(repo, "config.json", revision=filled)


def test_upload_folder_is_one_commit_with_every_file(api: HfApi, repo: str, folder: Path) -> None:
    api.upload_folder(repo_id=repo, folder_path=folder, commit_message="all")
    assert [commit.title for commit in api.list_repo_commits(repo)] == ["all", "initial commit"]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(api.list_repo_files(repo)) == files | {".gitattributes"}


def test_upload_folder_again_makes_no_commit(api: HfApi, repo: str, folder: Path, filled: str) -> None:
    assert api.upload_folder(repo_id=repo, folder_path=folder).oid == filled
    assert len(api.list_repo_commits(repo)) == 2


def test_upload_file_from_bytes(api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"hello", path_in_repo="a/b.txt", repo_id=repo)
    assert Path(api.hf_hub_download(repo, "a/b.txt")).read_bytes() == b"hello"


def test_upload_file_over_lfs(api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.safetensors", repo_id=repo)
    (info,) = api.get_paths_info(repo, ["w.safetensors"])
    assert info.lfs is not None
    assert (info.lfs.sha256, info.lfs.size, info.size) == (SHA256, len(WEIGHTS), len(WEIGHTS))


def test_a_commit_of_a_file_object(api: HfApi, repo: str) -> None:
    add = CommitOperationAdd("w.bin", io.BytesIO(WEIGHTS))
    api.create_commit(repo, [add], commit_message="object")
    assert Path(api.hf_hub_download(repo, "w.bin")).read_bytes() == WEIGHTS


def test_a_commit_adds_deletes_and_copies(api: HfApi, repo: str, filled: str) -> None:
    api.create_commit(
        repo,
        [
            CommitOperationAdd("new.txt", b"new"),
            CommitOperationDelete("empty.txt"),
            CommitOperationDelete("parity/"),
            CommitOperationCopy("layer-00000.safetensors", "copy.safetensors"),
            CommitOperationCopy("config.json", "copy.json"),
        ],
        commit_message="mixed",
        parent_commit=filled,
    )
    files = {".gitattributes", "README.md", "config.json", "layer-00000.safetensors"}
    assert set(api.list_repo_files(repo)) == files | {"new.txt", "copy.safetensors", "copy.json"}
    assert Path(api.hf_hub_download(repo, "copy.safetensors")).read_bytes() == WEIGHTS
    assert Path(api.hf_hub_download(repo, "copy.json")).read_text() == '{"a": 1}'


def test_a_stale_parent_is_refused(api: HfApi, repo: str, filled: str) -> None:
    api.upload_file(path_or_fileobj=b"1", path_in_repo="1", repo_id=repo, parent_commit=filled)
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(path_or_fileobj=b"2", path_in_repo="2", repo_id=repo, parent_commit=filled)
    assert status(error) == 412
    assert not api.file_exists(repo, "2")


def test_model_card_is_pushed_and_loaded(api: HfApi, repo: str) -> None:
    # ModelCard knows only the endpoint of the environment, read when the client is imported.
    script = (
        "import sys; from huggingface_hub import ModelCard\n"
        "ModelCard('---\\nlicense: mit\\n---\\n# Title').push_to_hub(sys.argv[1])\n"
        "card = ModelCard.load(sys.argv[1]); assert card.data.license == 'mit'; print(card.text.strip())"
    )
    environment = {**os.environ, "HF_ENDPOINT": api.endpoint, "HF_TOKEN": str(api.token)}
    done = subprocess.run(
        [sys.executable, "-c", script, repo], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "# Title"), done.stderr
    assert ModelCard.load(api.hf_hub_download(repo, "README.md")).data.license == "mit"


def test_a_card_that_is_not_yaml_is_refused(api: HfApi, repo: str) -> None:
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(path_or_fileobj=b"---\nlicense: [\n---\n", path_in_repo="README.md", repo_id=repo)


def test_tree_lists_files_and_folders(api: HfApi, repo: str, filled: str) -> None:
    flat = {item.path for item in api.list_repo_tree(repo)}
    deep = {item.path for item in api.list_repo_tree(repo, recursive=True)}
    below = {item.path for item in api.list_repo_tree(repo, "parity", revision=filled)}
    assert "parity" in flat
    assert "parity/one.json" not in flat
    assert deep - flat == {"parity/one.json"}
    assert below == {"parity/one.json"}
    assert all(item.last_commit.oid == filled for item in api.list_repo_tree(repo, expand=True))
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "absent"))


def test_tree_comes_in_pages(api: HfApi, repo: str) -> None:
    adds = [CommitOperationAdd(f"f/{number:04}", b"") for number in range(1200)]
    api.create_commit(repo, adds, commit_message="many")
    assert len(list(api.list_repo_tree(repo, "f"))) == 1200


def test_paths_info_leaves_out_missing_paths(api: HfApi, repo: str, filled: str) -> None:
    infos = api.get_paths_info(repo, ["config.json", "parity", "absent"], revision=filled, expand=True)
    assert {info.path for info in infos} == {"config.json", "parity"}


def test_model_info_has_sizes_ids_and_the_cards_data(api: HfApi, repo: str, filled: str) -> None:
    info = api.model_info(repo, files_metadata=True)
    assert (info.id, info.sha, info.private) == (repo, filled, True)
    assert info.card_data is not None
    assert info.card_data.license == "mit"
    assert {"shardhub-shard", "license:mit"} <= set(info.tags or [])
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    assert siblings["layer-00000.safetensors"].lfs is not None
    assert siblings["config.json"].size == 8


def test_download_is_cached_by_commit(api: HfApi, repo: str, filled: str) -> None:
    path = Path(api.hf_hub_download(repo, "layer-00000.safetensors"))
    assert path.read_bytes() == WEIGHTS
    assert path.resolve().name == SHA256
    assert filled in path.parts


def test_snapshot_of_a_commit(api: HfApi, repo: str, folder: Path, filled: str) -> None:
    api.upload_file(path_or_fileobj=b"later", path_in_repo="later.txt", repo_id=repo)
    path = Path(snapshot_download(repo, revision=filled, endpoint=api.endpoint, token=api.token))
    downloaded = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    original = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert downloaded.items() >= original.items()
    assert "later.txt" not in downloaded


def test_snapshot_with_patterns_and_then_the_rest(api: HfApi, repo: str, filled: str) -> None:
    path = Path(api.snapshot_download(repo, allow_patterns=["*.json"]))
    assert {file.name for file in path.rglob("*") if file.is_file()} == {"config.json", "one.json"}
    assert Path(api.snapshot_download(repo)) == path
    assert (path / "layer-00000.safetensors").read_bytes() == WEIGHTS


def test_snapshot_into_a_folder(api: HfApi, repo: str, filled: str, tmp_path: Path) -> None:
    api.snapshot_download(repo, local_dir=tmp_path / "out")
    assert (tmp_path / "out" / "layer-00000.safetensors").read_bytes() == WEIGHTS


def test_url_and_metadata(api: HfApi, repo: str, filled: str) -> None:
    url = hf_hub_url(repo, "layer-00000.safetensors", endpoint=api.endpoint)
    metadata = get_hf_file_metadata(url, token=api.token)
    assert (metadata.commit_hash, metadata.etag, metadata.size) == (filled, SHA256, len(WEIGHTS))


def test_file_system_finds_and_reads_ranges(api: HfApi, repo: str, filled: str) -> None:
    HfFileSystem.clear_instance_cache()
    system = HfFileSystem(endpoint=api.endpoint, token=api.token)
    assert system.glob(f"{repo}/*.safetensors") == [f"{repo}/layer-00000.safetensors"]
    assert system.info(f"{repo}/parity")["type"] == "directory"
    with system.open(f"{repo}/layer-00000.safetensors", "rb", block_size=1024) as file:
        file.seek(70_001)
        assert file.read(1000) == WEIGHTS[70_001:71_001]
    HfFileSystem.clear_instance_cache()


def test_a_range_comes_as_206(api: HfApi, repo: str, filled: str) -> None:
    url = hf_hub_url(repo, "layer-00000.safetensors", endpoint=api.endpoint)
    size = len(WEIGHTS)
    for header, start, stop in (
        ("bytes=0-0", 0, 1),
        ("bytes=100-299", 100, 300),
        (f"bytes={size - 6}-", size - 6, size),
        ("bytes=-5", size - 5, size),
        (f"bytes=7-{size * 2}", 7, size),
    ):
        answer = httpx2.get(url, headers={"Range": header, "Authorization": f"Bearer {api.token}"}, timeout=60)
        assert answer.status_code == 206
        assert answer.content == WEIGHTS[start:stop]
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
    # What is no range of bytes is as if it were not there. Source: RFC 9110, 14.2.
    answer = httpx2.get(url, headers={"Range": "lines=1-2", "Authorization": f"Bearer {api.token}"}, timeout=60)
    assert (answer.status_code, answer.content) == (200, WEIGHTS)


def test_a_range_past_the_end_is_416(api: HfApi, repo: str, filled: str) -> None:
    url = hf_hub_url(repo, "layer-00000.safetensors", endpoint=api.endpoint)
    headers = {"Range": f"bytes={len(WEIGHTS)}-", "Authorization": f"Bearer {api.token}"}
    answer = httpx2.get(url, headers=headers, timeout=60)
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(WEIGHTS)}"


def test_tags(api: HfApi, repo: str, filled: str) -> None:
    api.create_tag(repo, tag="v1.0", tag_message="first", revision=filled)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag(repo, tag="v1.0")
    assert status(error) == 409
    api.create_tag(repo, tag="v1.0", exist_ok=True)
    assert api.model_info(repo, revision="v1.0").sha == filled
    api.delete_tag(repo, tag="v1.0")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="v1.0")


def test_branches_with_a_slash(api: HfApi, repo: str, filled: str) -> None:
    api.create_branch(repo, branch="dev/x", revision=filled)
    api.create_branch(repo, branch="dev/x", exist_ok=True)
    made = api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo, revision="dev/x")
    assert api.file_exists(repo, "x.txt", revision="dev/x")
    assert api.file_exists(repo, "x.txt", revision="refs/heads/dev/x")
    assert not api.file_exists(repo, "x.txt")
    assert api.model_info(repo, revision="dev/x").sha == made.oid
    api.delete_branch(repo, branch="dev/x")
    assert not api.revision_exists(repo, "dev/x")


def test_refs(api: HfApi, repo: str, filled: str) -> None:
    api.create_branch(repo, branch="b")
    api.create_tag(repo, tag="t")
    refs = api.list_repo_refs(repo)
    assert {(ref.name, ref.ref, ref.target_commit) for ref in refs.branches} == {
        ("main", "refs/heads/main", filled),
        ("b", "refs/heads/b", filled),
    }
    assert [(ref.name, ref.ref) for ref in refs.tags] == [("t", "refs/tags/t")]


def test_commits_are_listed_newest_first(api: HfApi, repo: str, filled: str) -> None:
    for number in range(3):
        api.upload_file(
            path_or_fileobj=b"%d" % number, path_in_repo="n", repo_id=repo, commit_message=f"commit {number}"
        )
    titles = [commit.title for commit in api.list_repo_commits(repo)]
    assert titles[:3] == ["commit 2", "commit 1", "commit 0"]
    assert api.list_repo_commits(repo)[0].authors == ["ann"]
    assert len(api.list_repo_commits(repo, revision=filled)) == 2


def test_what_is_missing_has_its_own_error(api: HfApi, repo: str, filled: str) -> None:
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(repo, "absent.json")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(repo, "config.json", revision="absent")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(repo, "config.json", revision="refs/pr/1")
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("ann/absent", "config.json")


def test_file_exists(api: HfApi, repo: str, filled: str) -> None:
    assert api.file_exists(repo, "parity/one.json")
    assert not api.file_exists(repo, "parity/two.json")
    assert not api.file_exists(repo, "parity")


def test_squash_leaves_one_commit_and_the_old_ones_readable(api: HfApi, repo: str, filled: str) -> None:
    api.upload_file(path_or_fileobj=b'{"a": 2}', path_in_repo="config.json", repo_id=repo)
    api.super_squash_history(repo)
    (squashed,) = api.list_repo_commits(repo)
    assert squashed.commit_id != filled
    assert Path(api.hf_hub_download(repo, "config.json")).read_text() == '{"a": 2}'
    assert Path(api.hf_hub_download(repo, "config.json", revision=filled)).read_text() == '{"a": 1}'


def test_list_models(hub: RunningHub, api: HfApi, repo: str, filled: str) -> None:
    other = HfApi(endpoint=hub.endpoint, token=hub.token("bob"))
    other.create_repo("bob/open", private=False)
    assert {info.id for info in api.list_models()} == {repo, "bob/open"}
    assert [info.id for info in api.list_models(author="ann")] == [repo]
    assert [info.id for info in api.list_models(search="OPE")] == ["bob/open"]
    assert [info.id for info in api.list_models(filter="shardhub-shard")] == [repo]
    assert [info.id for info in api.list_models(limit=1)] == ["bob/open"]


def test_lists_name_files_only_if_asked(api: HfApi, repo: str, filled: str) -> None:
    """A listing has no files, which may be many, but all of them with `full`; both have the newest commit's card."""
    (brief,), (full,) = list(api.list_models()), list(api.list_models(full=True))
    assert (brief.siblings, brief.sha) == (None, filled)
    assert sorted(one.rfilename for one in full.siblings) == sorted(api.list_repo_files(repo))
    assert brief.tags == full.tags
    api.upload_file(path_or_fileobj=b"---\ntags: [changed]\n---\n", path_in_repo="README.md", repo_id=repo)
    (again,) = api.list_models()
    assert "changed" in again.tags


def test_settings(hub: RunningHub, api: HfApi, repo: str) -> None:
    stranger = HfApi(endpoint=hub.endpoint, token=False)
    api.update_repo_settings(repo, private=False, gated="auto")
    assert stranger.model_info(repo).gated == "auto"
    api.update_repo_settings(repo, gated=False)
    assert stranger.model_info(repo).gated is False
    api.update_repo_settings(repo, visibility="private")
    assert not stranger.repo_exists(repo)


def test_move_keeps_the_content(api: HfApi, repo: str, filled: str) -> None:
    api.create_repo("ann/taken")
    with pytest.raises(HfHubHTTPError) as error:
        api.move_repo(repo, "ann/taken")
    assert status(error) == 409
    api.move_repo(repo, "ann/moved")
    assert api.model_info("ann/moved").sha == filled
    assert not api.repo_exists(repo)


def test_delete_file_and_folder(api: HfApi, repo: str, filled: str) -> None:
    api.delete_file("config.json", repo)
    api.delete_folder("parity", repo)
    assert set(api.list_repo_files(repo)) == {".gitattributes", "README.md", "empty.txt", "layer-00000.safetensors"}
    with pytest.raises(EntryNotFoundError):
        api.delete_file("config.json", repo)


def test_delete_repo(api: HfApi, repo: str, filled: str) -> None:
    api.delete_repo(repo)
    assert not api.repo_exists(repo)
    api.delete_repo(repo, missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(repo)
    assert api.create_repo(repo).repo_id == repo
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_auth_check(hub: RunningHub, api: HfApi, repo: str) -> None:
    api.auth_check(repo, write=True)
    reader = HfApi(endpoint=hub.endpoint, token=hub.token("ann", role="read"))
    reader.auth_check(repo)
    with pytest.raises(HfHubHTTPError) as error:
        reader.auth_check(repo, write=True)
    assert status(error) == 403


def test_pull_requests_are_refused_clearly(api: HfApi, repo: str) -> None:
    with pytest.raises(BadRequestError, match="no pull requests"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=repo, create_pr=True)
