"""A repo brought from one Hub to another, whole, resumed and verified."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from shardhub.errors import AccessError, Conflict, DigestMismatch, NotFound, UsageError
from shardhub.localhub.server import RunningHub, running_hub
from shardhub.usecases.mirror import MirrorSettings, mirror
from tests.hub import faulty
from tests.hub.published import OVER_LFS

pytestmark = OVER_LFS
MODEL = "org/model"
CONTENTS = {
    "model-00001-of-00002.safetensors": os.urandom(300_000),
    "model-00002-of-00002.safetensors": os.urandom(200_000),
    "sub/folder/w.bin": os.urandom(100_000),
    "sub/small.txt": b"small",
    "odd name (1).json": b"{}",
    "README.md": b"---\nlicense: mit\n---\n# Card",
}


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningHub, RunningHub]]:
    """A Hub with a model, and an empty one."""
    work = tmp_path_factory.mktemp("mirror")
    with running_hub(work / "source") as source, running_hub(work / "target") as target:
        api = HfApi(endpoint=source.endpoint, token=source.token("org"))
        api.create_repo(MODEL, private=False)
        folder = work / "model"
        for path, content in CONTENTS.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        api.upload_folder(repo_id=MODEL, folder_path=folder)
        yield source, target


@pytest.fixture
def api(hubs: tuple[RunningHub, RunningHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """The client of a user of the second Hub, which the environment names."""
    token = hubs[1].token("ann")
    monkeypatch.setenv("HF_ENDPOINT", hubs[1].endpoint)
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("SHARDHUB_CACHE", str(tmp_path / "cache"))
    api = HfApi(endpoint=hubs[1].endpoint, token=token)
    yield api
    api.delete_repo("ann/model", missing_ok=True)


def settings_for(hub: RunningHub | faulty.Network, **more: object) -> MirrorSettings:
    return MirrorSettings(source_endpoint=hub.endpoint, **more)


def listing(api: HfApi, repo: str) -> dict[str, object]:
    """Names, sizes and digests of a repo's files."""
    infos = api.model_info(repo, files_metadata=True).siblings
    return {one.rfilename: (one.size, one.blob_id, one.lfs and one.lfs.sha256) for one in infos}


def test_mirror_has_exactly_the_sources_files(hubs: tuple[RunningHub, RunningHub], api: HfApi, tmp_path: Path) -> None:
    source = HfApi(endpoint=hubs[0].endpoint, token=False)
    done = mirror(MODEL, settings_for(hubs[0]))
    assert listing(api, "ann/model") == listing(source, MODEL)
    assert (done.repo, done.num_files) == ("ann/model", len(CONTENTS) + 1)
    assert done.source_commit == source.model_info(MODEL).sha
    assert done.commit == api.model_info("ann/model").sha
    assert Path(api.hf_hub_download("ann/model", "sub/folder/w.bin")).read_bytes() == CONTENTS["sub/folder/w.bin"]
    again = mirror(f"{hubs[0].endpoint}/{MODEL}")
    assert (again.sent_bytes, again.commit) == (0, done.commit)
    assert list((tmp_path / "cache" / "mirror" / "blobs").iterdir()) == []


def test_progress_bars_name_the_files(
    hubs: tuple[RunningHub, RunningHub], api: HfApi, capsys: pytest.CaptureFixture[str]
) -> None:
    """The client's bars are labelled by the files' names, not by the digests under which the blobs are kept."""
    enable_progress_bars()
    try:
        mirror(MODEL, settings_for(hubs[0]))
    finally:
        disable_progress_bars()
    shown = capsys.readouterr().err
    assert "w.bin: 100%" in shown
    assert hashlib.sha256(CONTENTS["sub/folder/w.bin"]).hexdigest()[:8] not in shown


def test_other_contents_are_replaced_only_if_asked(hubs: tuple[RunningHub, RunningHub], api: HfApi) -> None:
    """The target is by default a repo of the source's name, which may be somebody's own work."""
    api.create_repo("ann/model", private=True)
    own = {"path_in_repo": "own.safetensors", "path_or_fileobj": b"own" * 1000, "repo_id": "ann/model"}
    before = api.upload_file(**own).oid
    with pytest.raises(Conflict, match="already exists with other contents") as error:
        mirror(MODEL, settings_for(hubs[0]))
    assert "`replace`" in str(error.value.hint)
    assert api.model_info("ann/model").sha == before
    mirror(MODEL, settings_for(hubs[0], replace=True))
    assert listing(api, "ann/model") == listing(HfApi(endpoint=hubs[0].endpoint, token=False), MODEL)
    (tag,) = api.list_repo_refs("ann/model").tags
    assert (tag.name, tag.target_commit) == (f"shardhub-before-{before[:12]}", before)
    assert mirror(MODEL, settings_for(hubs[0])).sent_bytes == 0
    changed = api.upload_file(**own).oid
    with pytest.raises(Conflict):
        mirror(MODEL, settings_for(hubs[0]))
    assert api.model_info("ann/model").sha == changed


def test_mirror_follows_its_source(hubs: tuple[RunningHub, RunningHub], api: HfApi) -> None:
    """What a newer commit of the source no longer has is deleted; another source does not take over the mirror."""
    source = HfApi(endpoint=hubs[0].endpoint, token=hubs[0].token("org"))
    source.create_repo("org/moving", private=False, exist_ok=True)
    for path in ("a.bin", "b.txt"):
        source.upload_file(path_or_fileobj=path.encode(), path_in_repo=path, repo_id="org/moving")
    mirror("org/moving", settings_for(hubs[0], name="ann/model"))
    source.delete_file("a.bin", "org/moving")
    mirror("org/moving", settings_for(hubs[0], name="ann/model"))
    assert sorted(api.list_repo_files("ann/model")) == [".gitattributes", "b.txt"]
    with pytest.raises(Conflict):
        mirror(MODEL, settings_for(hubs[0], name="ann/model"))


def test_a_private_source_is_not_shown_to_everyone(
    hubs: tuple[RunningHub, RunningHub], api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = HfApi(endpoint=hubs[0].endpoint, token=hubs[0].token("org"))
    source.create_repo("org/secret", private=True, exist_ok=True)
    source.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="org/secret")
    monkeypatch.setenv("SHARDHUB_SOURCE_TOKEN", hubs[0].token("org", role="read"))
    to_model = settings_for(hubs[0], name="ann/model")
    mirror("org/secret", to_model)
    assert api.model_info("ann/model").private is True
    api.update_repo_settings("ann/model", private=False)
    for settings, reason in ((to_model, "everyone can read ann/model"), (replace(to_model, private=True), "is public")):
        with pytest.raises(UsageError, match=reason):
            mirror("org/secret", settings)
    mirror("org/secret", replace(to_model, private=False))
    api.delete_repo("ann/model")
    mirror(MODEL, to_model)
    assert api.model_info("ann/model").private is False


def test_mirror_that_ended_early_goes_on(
    hubs: tuple[RunningHub, RunningHub], api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed is not sent again."""
    from shardhub.hub import mirror as module

    real = module.to_upload
    sent: list[str] = []

    def dies_at_the_second(path: str, file: Path, sha256: str) -> object:
        if len(sent) == 1:
            raise KeyboardInterrupt
        sent.append(path)
        return real(path, file, sha256)

    with monkeypatch.context() as patch:
        patch.setattr(module, "to_upload", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            mirror(MODEL, settings_for(hubs[0]))
    done = mirror(MODEL, settings_for(hubs[0]))
    total = sum(len(content) for content in CONTENTS.values())
    assert done.sent_bytes == total - len(CONTENTS[sent[0]])
    assert listing(api, "ann/model") == listing(HfApi(endpoint=hubs[0].endpoint, token=False), MODEL)


def test_wrong_bytes_are_never_mirrored(hubs: tuple[RunningHub, RunningHub], api: HfApi) -> None:
    with faulty.network(hubs[0].endpoint) as net:
        net.when("/resolve/", faulty.flip, times=1000)
        with pytest.raises(DigestMismatch):
            mirror(MODEL, settings_for(net))
    assert api.list_repo_files("ann/model") == [".gitattributes"]


def test_revision_and_name_can_be_given(hubs: tuple[RunningHub, RunningHub], api: HfApi) -> None:
    source = HfApi(endpoint=hubs[0].endpoint, token=False)
    first = source.list_repo_commits(MODEL)[-1].commit_id
    done = mirror(f"{MODEL}@{first}", settings_for(hubs[0], name="ann/first", private=True))
    assert (done.repo, done.source_commit) == ("ann/first", first)
    assert api.list_repo_files("ann/first") == [".gitattributes"]
    assert api.model_info("ann/first").private is True


def test_what_cannot_be_mirrored_is_reported(
    hubs: tuple[RunningHub, RunningHub], api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound):
        mirror("org/absent", settings_for(hubs[0]))
    assert not api.repo_exists("ann/absent")
    with pytest.raises(UsageError, match="is to be brought from"):
        mirror("ann/x", settings_for(hubs[1]))
    with pytest.raises(UsageError, match="not the name"):
        mirror("./folder", settings_for(hubs[0]))
    with pytest.raises(AccessError):
        mirror(MODEL, settings_for(hubs[0], name="bob/model"))
    monkeypatch.setenv("HF_TOKEN", hubs[1].token("ann", role="read"))
    with pytest.raises(AccessError):
        mirror(MODEL, settings_for(hubs[0]))


@pytest.mark.parametrize(("limit", "value"), [("_BATCH_FILES", 1), ("_BATCH_BYTES", 6)])
def test_many_small_files_come_in_several_commits(
    hubs: tuple[RunningHub, RunningHub], api: HfApi, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """Neither their number nor their bytes make a request that a Hub refuses, or that memory cannot hold."""
    monkeypatch.setattr(f"shardhub.hub.mirror.{limit}", value)
    mirror(MODEL, settings_for(hubs[0]))
    source = HfApi(endpoint=hubs[0].endpoint, token=False)
    assert listing(api, "ann/model") == listing(source, MODEL)
    titles = [one.title for one in api.list_repo_commits("ann/model")]
    small = [path for path, one in listing(source, MODEL).items() if one[2] is None and path != ".gitattributes"]
    assert sum(title.startswith(f"{MODEL} at ") for title in titles) == len(small) == 3
