"""Giving a pipeline of copies a second place for its weights, and dropping the copies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from shardhub.checkpoint.weight_files import INDEX_FILE
from shardhub.errors import Conflict, DigestMismatch, HubUnreachable, NotFound, UsageError
from shardhub.hub.calls import HubCalls
from shardhub.hub.fetch import Fetcher
from shardhub.hub.publish import Published
from shardhub.hub.push_decisions import Action
from shardhub.hub.push_journal import PushJournal
from shardhub.hub.refer import Referral, Referred, find_published
from shardhub.hub.reference import Reference
from shardhub.manifest import Manifest, SourceLocation, decode_identified
from shardhub.naming import CARD_FILE, MANIFEST_FILE, RANGES_FILE, SIGNATURE_FILE, STAGE_FILE
from shardhub.shard import read_shard
from tests.checkpoints import contents_of, write_checkpoint
from tests.hub import faulty
from tests.hub.published import OVER_LFS, change_json
from tests.hub.referring import open_remote, push, upload_model

pytestmark = OVER_LFS

ROWS = 4096
WEIGHTS = ".safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two files."""
    folder = tmp_path_factory.mktemp("model") / "model"
    write_checkpoint(folder, 4, rows=ROWS, tied=False)
    return folder


@pytest.fixture
def source(api: HfApi, user: str, model: Path) -> str:
    """It on the Hub."""
    return upload_model(api, user, model)


@pytest.fixture
def copied(api: HfApi, user: str, source: str, tmp_path: Path) -> Published:
    """Its two stages, with their weights."""
    return push(api, user, source, [2], tmp_path / "copied", by_reference=False)


def refer(api: HfApi, repo: str, work: Path, *, drop_copies: bool = False, computed: Sequence[str] = ()) -> Referred:
    """Refer to the source of a pipeline, except for tensors that are said to be computed."""
    calls = HubCalls(api=api, sleep=lambda _: None)
    published = find_published(calls, repo)
    checkpoint = open_remote(api, published.repo, work).checkpoint
    names = {final: name for final, name in contents_of(checkpoint).stored_names.items() if final not in computed}
    return Referral(published, checkpoint, names, drop_copies=drop_copies).run(calls, PushJournal(work / "push"))


def weights_of(api: HfApi, repo: str) -> list[str]:
    return [name for name in api.list_repo_files(repo) if name.endswith(WEIGHTS)]


def manifest_of(api: HfApi, repo: str) -> Manifest:
    return decode_identified(Manifest, Path(api.hf_hub_download(repo, MANIFEST_FILE)).read_bytes(), where=repo)


def fetched(fetcher: Fetcher, api: HfApi, repo: str) -> None:
    """Fetch every shard as the pipeline's newest manifest names it."""
    for stage in manifest_of(api, repo).stages:
        at = stage.locations[0]
        assert not isinstance(at, SourceLocation)
        shard = fetcher.shard(Reference(repo=at.repo, revision=at.commit), digest=stage.digest)
        assert {file.name for file in read_shard(shard.folder).stage.weight_files} == {
            path.name for path in shard.folder.glob(f"*{WEIGHTS}")
        }


def test_pipeline_gets_second_places(
    copied: Published, source: str, api: HfApi, reader: HfApi, net: faulty.Network, tmp_path: Path, model: Path
) -> None:
    """The source is read once and compared; weights and identity stay, cards and manifest name the source."""
    made = refer(reader, copied.pipeline.repo, tmp_path)
    size_bytes = sum(path.stat().st_size for path in model.glob(f"*{WEIGHTS}"))
    assert net.fetched(WEIGHTS) <= 1.01 * size_bytes
    assert [at.action for at in (*made.shards, made.pipeline)] == [Action.UPDATE] * 3
    manifest = manifest_of(api, copied.pipeline.repo)
    assert (manifest.pipeline_id, manifest.format_version) == (copied.pipeline_id, 2)
    assert [type(stage.locations[-1]) for stage in manifest.stages] == [SourceLocation] * 2
    for at in (*copied.shards, copied.pipeline):
        card = Path(api.hf_hub_download(at.repo, CARD_FILE)).read_text()
        assert card.count("published by reference") == 1
        assert f"](/{source})" in card
    for at in copied.shards:
        assert weights_of(api, at.repo)
        assert {RANGES_FILE, INDEX_FILE} <= set(api.list_repo_files(at.repo))
    net.forget()
    again = refer(reader, copied.pipeline.repo, tmp_path)
    assert [at.action for at in (*again.shards, again.pipeline)] == [Action.KEEP] * 3
    assert net.fetched(WEIGHTS) < 4096  # headers


def test_copies_are_dropped(copied: Published, api: HfApi, tmp_path: Path, fetcher: Fetcher) -> None:
    """The newest commits hold no weights, nodes fetch from the source, and the manifest before still works."""
    stages = [Path(api.hf_hub_download(at.repo, STAGE_FILE)).read_bytes() for at in copied.shards]
    made = refer(api, copied.pipeline.repo, tmp_path, drop_copies=True)
    assert made.dropped_bytes > ROWS
    for at, stage in zip(copied.shards, stages, strict=True):
        assert not weights_of(api, at.repo)
        assert INDEX_FILE not in api.list_repo_files(at.repo)
        assert Path(api.hf_hub_download(at.repo, STAGE_FILE)).read_bytes() == stage
    fetched(fetcher, api, copied.pipeline.repo)
    at = copied.shards[0]
    fetcher.fetch(Reference(repo=at.repo, revision=at.commit))
    again = refer(api, copied.pipeline.repo, tmp_path, drop_copies=True)
    assert [at.action for at in (*again.shards, again.pipeline)] == [Action.KEEP] * 3


def test_other_bytes_are_not_referred_to(
    copied: Published, reader: HfApi, net: faulty.Network, api: HfApi, tmp_path: Path
) -> None:
    """A source that does not give a shard's bytes is refused, and nothing is written or dropped."""
    net.when("model-00001-of-00002", times=2)  # its header
    net.when("model-00001-of-00002", faulty.flip)
    with pytest.raises(DigestMismatch, match="does not have the bytes of"):
        refer(reader, copied.pipeline.repo, tmp_path, drop_copies=True)
    for at in (*copied.shards, copied.pipeline):
        assert api.model_info(at.repo).sha == at.commit


def test_stopped_run_leaves_a_pipeline_that_works(
    copied: Published, reader: HfApi, net: faulty.Network, api: HfApi, tmp_path: Path, fetcher: Fetcher
) -> None:
    """A run that could change one shard only is finished by the next; in between every stage can be fetched."""

    def refuse(path: str) -> None:
        if f"/{copied.shards[1].repo}/commit/" in path:
            raise ConnectionResetError

    net.on_request = refuse
    with pytest.raises(HubUnreachable):
        refer(reader, copied.pipeline.repo, tmp_path, drop_copies=True)
    assert not weights_of(api, copied.shards[0].repo)
    fetched(fetcher, api, copied.pipeline.repo)
    net.on_request = lambda path: None
    made = refer(reader, copied.pipeline.repo, tmp_path, drop_copies=True)
    assert [at.action for at in made.shards] == [Action.KEEP, Action.UPDATE]
    fetched(fetcher, api, copied.pipeline.repo)


def test_computed_tensors_keep_their_files(copied: Published, api: HfApi, tmp_path: Path, fetcher: Fetcher) -> None:
    """A weight file with a tensor that the source does not hold stays in its repo."""
    made = refer(
        api, copied.pipeline.repo, tmp_path, drop_copies=True, computed=["model.layers.1.input_layernorm.weight"]
    )
    assert made.num_referenced == 6  # three more layers, embedding, norm and head
    assert weights_of(api, copied.shards[0].repo) == ["layer-00001.safetensors"]
    fetched(fetcher, api, copied.pipeline.repo)


def test_card_that_its_owner_has_written_is_kept(copied: Published, api: HfApi, tmp_path: Path) -> None:
    """The paragraph about the source follows what is there."""
    repo = copied.pipeline.repo
    api.upload_file(path_or_fileobj=b"# Mine\n", path_in_repo=CARD_FILE, repo_id=repo)
    refer(api, repo, tmp_path)
    card = Path(api.hf_hub_download(repo, CARD_FILE)).read_text()
    assert card.startswith("# Mine\n\nThe shards are published by reference")


def test_what_is_not_a_pipeline_of_a_source_is_refused(
    copied: Published, source: str, api: HfApi, user: str, tmp_path: Path
) -> None:
    """Nothing there, a model, a pipeline made from a folder or quantised on the way, another stage, a signature."""
    calls, repo = HubCalls(api=api), copied.pipeline.repo
    with pytest.raises(NotFound, match="does not exist"):
        find_published(calls, f"{user}/nothing")
    with pytest.raises(UsageError, match="is not a pipeline"):
        find_published(calls, source)
    checkpoint = open_remote(api, source, tmp_path).checkpoint
    published = find_published(calls, repo)
    with pytest.raises(UsageError, match="No weight file"):
        Referral(published, checkpoint, {})
    signed = replace(published.remote, files={**published.remote.files, SIGNATURE_FILE: None})
    with pytest.raises(UsageError, match="is signed"):
        Referral(replace(published, remote=signed), checkpoint, contents_of(checkpoint).stored_names)
    manifest = json.loads(Path(api.hf_hub_download(repo, MANIFEST_FILE)).read_text())
    for changed, text in (
        ({"repo": None, "commit": None}, "made from a folder"),
        ({**manifest["source"], "quantized": {"bits": 4, "group_size": 64, "mode": "affine"}}, "holds the floats"),
    ):
        data = json.dumps({**manifest, "source": changed}, sort_keys=True, separators=(",", ":")).encode()
        api.upload_file(path_or_fileobj=data, path_in_repo=MANIFEST_FILE, repo_id=repo)
        with pytest.raises(UsageError, match=text):
            find_published(calls, repo)


def test_shard_that_holds_another_stage_is_refused(copied: Published, api: HfApi) -> None:
    """A shard's repo that has moved on is not written over."""
    change_json(api, copied.shards[1].repo, STAGE_FILE, {"dtype": "F16"})
    with pytest.raises(Conflict, match="no longer holds stage 1"):
        find_published(HubCalls(api=api), copied.pipeline.repo)
