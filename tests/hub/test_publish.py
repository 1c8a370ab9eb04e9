"""Pushes by the real client to a local Hub, read back as a user would read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from starlette.responses import JSONResponse

from shardhub.errors import AccessError, Conflict, UsageError
from shardhub.hub.publish import Published
from shardhub.hub.push_decisions import Action
from shardhub.localhub.server import RunningHub
from shardhub.manifest import Manifest, RepoLocation, Source, Stage, decode_identified
from shardhub.naming import PICTURE_FILE
from shardhub.shard import read_shard
from tests.checkpoints import write_checkpoint
from tests.hub.pushing import OVER_LFS, Pusher, Wire, pushing_hub

pytestmark = OVER_LFS

ROWS = 4096  # so that weights are most of what travels


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[RunningHub, Wire]]:
    with pushing_hub(tmp_path / "hub") as served:
        yield served


@pytest.fixture
def wire(served: tuple[RunningHub, Wire]) -> Wire:
    return served[1]


@pytest.fixture
def ann(served: tuple[RunningHub, Wire], tmp_path: Path) -> Pusher:
    return Pusher(served[0], tmp_path / "cache")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", 8, rows=ROWS, tied=False)
    return tmp_path / "model"


def read_back(pusher: Pusher, published: Published, into: Path) -> Manifest:
    """Download everything that a manifest names, and check it against the manifest."""
    folder = Path(
        pusher.api.snapshot_download(
            published.pipeline.repo, revision=published.pipeline.commit, local_dir=into / "pipeline"
        )
    )
    manifest = decode_identified(Manifest, (folder / "shardhub.json").read_bytes(), where="")
    assert manifest.pipeline_id == published.pipeline_id
    for name, digest in manifest.files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    for number, entry in enumerate(manifest.stages):
        (location,) = entry.locations
        assert isinstance(location, RepoLocation)
        folder = Path(
            pusher.api.snapshot_download(location.repo, revision=location.commit, local_dir=into / f"{number}")
        )
        shard = read_shard(folder)
        assert shard.digest == entry.digest
        for file in shard.stage.weight_files:
            assert hashlib.sha256((folder / file.name).read_bytes()).hexdigest() == file.sha256
    return manifest


def test_push_is_read_back_whole(ann: Pusher, model: Path, tmp_path: Path) -> None:
    """Every shard has one commit with all its files, and the manifest names those commits and digests."""
    done = ann.push(model, [3, 6])
    manifest = read_back(ann, done, tmp_path / "back")
    assert [shard.repo for shard in done.shards] == ["ann/m-shard-0", "ann/m-shard-1", "ann/m-shard-2"]
    assert done.pipeline.repo == "ann/m-pipeline"
    assert [(entry.start, entry.stop) for entry in manifest.stages] == [(0, 3), (3, 6), (6, 8)]
    for repo in (*done.shards, done.pipeline):
        assert [commit.commit_id for commit in ann.api.list_repo_commits(repo.repo)][:-1] == [repo.commit]
        assert ann.api.model_info(repo.repo).private is False
    files = set(ann.api.list_repo_files("ann/m-shard-0"))
    assert {"stage.json", "tensors.json", "proof.json", "config.json", "README.md"} < files
    assert "model.safetensors.index.json" in files
    assert not [name for name in files if name.endswith(".py")]
    hint = json.loads((tmp_path / "back" / "1" / "config.json").read_text())["shardhub"]
    assert (hint["pipeline"], hint["index"]) == ("ann/m-pipeline", 1)


def test_push_needs_room_for_one_weight_file(ann: Pusher, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache folder never holds more than one weight file during a push."""
    from shardhub.splitting.weight_copy import Copier

    seen: list[int] = []
    write = Copier.write

    def watched(self: Copier, *args, **options) -> None:
        write(self, *args, **options)
        seen.append(len(list(ann.cache.rglob("*.safetensors"))))

    monkeypatch.setattr(Copier, "write", watched)
    ann.push(model, [4])
    assert len(seen) == 11
    assert set(seen) == {1}
    assert not list(ann.cache.rglob("*.safetensors"))


def test_plan_writes_nothing(ann: Pusher, model: Path, wire: Wire) -> None:
    """A plan changes neither Hub nor cache, and describes what a push would do."""
    job = ann.job(model, [4])
    plan = ann.plan(job)
    assert [at.action for at in plan.decisions] == [Action.CREATE] * 3
    assert plan.upload_bytes == sum(shard.size_bytes for shard in job.shards)
    assert {method for method, _ in wire.calls} == {"GET"}
    assert list(ann.api.list_models(author="ann")) == []
    assert not list(ann.cache.glob("*"))


def test_push_again_changes_nothing(ann: Pusher, model: Path, wire: Wire) -> None:
    """Repeating a push sends no weights and makes no commit."""
    first = ann.push(model, [4])
    wire.reset()
    second = ann.push(model, [4])
    assert [repo.commit for repo in (*second.shards, second.pipeline)] == [
        repo.commit for repo in (*first.shards, first.pipeline)
    ]
    assert {repo.action for repo in (*second.shards, second.pipeline)} == {Action.KEEP}
    assert {method for method, _ in wire.calls} == {"GET"}


def test_push_from_another_machine_uploads_nothing(ann: Pusher, model: Path, wire: Wire, tmp_path: Path) -> None:
    """Without the journal the source is read again, but no byte is sent and no commit made."""
    first = ann.push(model, [4])
    wire.reset()
    ann.cache = tmp_path / "other-cache"
    second = ann.push(model, [4])
    assert second.shards[0].commit == first.shards[0].commit
    assert (wire.put_bytes, wire.count("POST", "/commit/")) == (0, 0)


def test_push_of_a_commit_takes_digests_from_the_hub(ann: Pusher, model: Path, wire: Wire, tmp_path: Path) -> None:
    """For a source at a commit, another machine does not read files whose digests its own stage.json records."""
    source = Source(repo="org/model", commit="e" * 40)
    first = ann.push(model, [4], source=source)
    ann.cache = tmp_path / "other-cache"
    plan = ann.plan(ann.job(model, [4], source=source))
    assert [at.action for at in plan.shards] == [Action.KEEP, Action.KEEP]
    assert plan.upload_bytes == 0
    assert ann.push(model, [4], source=source).pipeline.commit == first.pipeline.commit


@pytest.mark.parametrize("replace", [False, True])
def test_another_cut_uploads_under_a_hundredth(
    ann: Pusher, model: Path, wire: Wire, tmp_path: Path, replace: bool
) -> None:
    """Cut in two, then in four under another name or in place: the Hub reuses its own files, from any repo."""
    two = ann.push(model, [4])
    total = wire.put_bytes
    old = read_back(ann, two, tmp_path / "two")
    wire.reset()
    four = ann.push(model, [2, 4, 6], name="m" if replace else "m4", replace=replace)
    assert wire.put_bytes < 0.01 * total
    assert four.uploaded_bytes == 0
    assert len(read_back(ann, four, tmp_path / "four").stages) == 4
    # The old manifest names commits, and they are there.
    assert read_back(ann, two, tmp_path / "again") == old
    tags = [ref.name for ref in ann.api.list_repo_refs("ann/m-shard-0").tags]
    assert tags == ([f"shardhub-before-{two.shards[0].commit[:12]}"] if replace else [])
    weights = {path for path in ann.api.list_repo_files(four.shards[1].repo) if path.endswith(".safetensors")}
    assert weights == {"layer-00002.safetensors", "layer-00003.safetensors"}


def test_another_cut_without_a_journal_uploads_nothing(ann: Pusher, model: Path, wire: Wire, tmp_path: Path) -> None:
    """Files that other repos hold are located by asking the Hub, without a journal."""
    ann.push(model, [4])
    wire.reset()
    ann.cache = tmp_path / "other-cache"
    ann.push(model, [2, 6], name="other")
    assert wire.put_bytes == 0


@pytest.mark.parametrize("status", [404, 400, 500])
def test_a_hub_that_gives_nothing_is_sent_everything(
    ann: Pusher, model: Path, wire: Wire, tmp_path: Path, status: int
) -> None:
    """Where the Hub cannot copy between repos, the bytes are uploaded."""

    ann.push(model, [4])
    total = wire.put_bytes
    wire.reset()
    wire.fault("POST", "/lfs-files/duplicate", lambda _: JSONResponse({"error": "no"}, status))
    four = ann.push(model, [2, 4, 6], name="m4")
    assert wire.put_bytes == total
    read_back(ann, four, tmp_path / "back")


def test_other_cuts_are_refused_with_the_ways_to_go_on(ann: Pusher, model: Path, wire: Wire) -> None:
    ann.push(model, [4])
    wire.reset()
    with pytest.raises(Conflict) as refused:
        ann.push(model, [2])
    assert refused.value.why == "It holds layers [0, 4) of 8, and this cut puts [0, 2) of 8 there."
    assert "`name`" in refused.value.hint
    assert "`replace`" in refused.value.hint
    assert {method for method, _ in wire.calls} == {"GET"}


def test_a_repo_that_is_something_else_is_refused(ann: Pusher, model: Path, wire: Wire) -> None:
    ann.api.create_repo("ann/m-pipeline")
    ann.api.upload_file(path_or_fileobj=b"mine", path_in_repo="thesis.txt", repo_id="ann/m-pipeline")
    with pytest.raises(Conflict, match="other contents"):
        ann.push(model, [4])
    assert not ann.api.repo_exists("ann/m-shard-0")
    before = ann.api.model_info("ann/m-pipeline").sha
    done = ann.push(model, [4], replace=True)
    assert "thesis.txt" not in ann.api.list_repo_files("ann/m-pipeline")
    assert done.pipeline.action is Action.REPLACE
    assert [ref.target_commit for ref in ann.api.list_repo_refs("ann/m-pipeline").tags] == [before]


def test_another_model_of_the_same_size_is_refused(ann: Pusher, model: Path, tmp_path: Path) -> None:
    """A model with the same name and cuts and other tensors is refused as an update."""
    ann.push(model, [4])
    write_checkpoint(tmp_path / "other", 8, rows=ROWS + 8, tied=False)
    with pytest.raises(Conflict) as refused:
        ann.push(tmp_path / "other", [4])
    assert refused.value.why == "It holds the same layers of another model."


def test_new_weights_are_an_update(ann: Pusher, model: Path, tmp_path: Path) -> None:
    """With the same name and cuts, other bytes make a new commit; the old manifest still leads to the old bytes."""
    first = ann.push(model, [4])
    write_checkpoint(tmp_path / "finetuned", 8, rows=ROWS, tied=False, seed=1)
    second = ann.push(tmp_path / "finetuned", [4])
    assert {repo.action for repo in (*second.shards, second.pipeline)} == {Action.UPDATE}
    new = read_back(ann, second, tmp_path / "new")
    old = read_back(ann, first, tmp_path / "old")
    assert {entry.digest for entry in new.stages}.isdisjoint(entry.digest for entry in old.stages)


def test_private_push_makes_private_repos(ann: Pusher, model: Path) -> None:
    done = ann.push(model, [4], private=True)
    assert all(ann.api.model_info(repo.repo).private for repo in (*done.shards, done.pipeline))


def test_private_push_into_a_public_repo_is_refused(ann: Pusher, model: Path) -> None:
    ann.push(model, [4])
    with pytest.raises(UsageError, match="is public, but `private` was given"):
        ann.push(model, [4], private=True)


def test_gate_of_the_source_is_put_before_new_repos(ann: Pusher, model: Path) -> None:
    done = ann.push(model, [4], gate="manual")
    assert [ann.api.model_info(repo.repo).gated for repo in (*done.shards, done.pipeline)] == ["manual"] * 3


def test_token_that_only_reads_is_refused_at_once(served: tuple[RunningHub, Wire], tmp_path: Path) -> None:
    reader = Pusher(served[0], tmp_path, role="read")
    with pytest.raises(AccessError, match="cannot write"):
        reader.calls.writer()


def test_cards_on_the_hub_are_parsed_and_link(ann: Pusher, model: Path, tmp_path: Path) -> None:
    """The client's own parser reads the cards; the shards stay out of the model tree."""
    done = ann.push(model, [4], source=Source(repo="org/model", commit="e" * 40))
    read_back(ann, done, tmp_path / "back")
    pipeline = ModelCard.load(tmp_path / "back" / "pipeline" / "README.md")
    assert (pipeline.data.base_model, pipeline.data["base_model_relation"]) == ("org/model", "quantized")
    assert (pipeline.data.license, pipeline.data.language) == ("apache-2.0", ["en", "de"])
    assert "| 0 | [`ann/m-shard-0`](/ann/m-shard-0) | 0 to 3 |" in pipeline.text
    assert f"]({PICTURE_FILE})" in pipeline.text
    assert (tmp_path / "back" / "pipeline" / PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    shard = ModelCard.load(tmp_path / "back" / "0" / "README.md")
    assert "shardhub-shard" in shard.data.tags
    assert shard.data.base_model is None
    assert "\nshardhub serve ann/m-shard-0\n" in shard.text
    assert "[`ann/m-pipeline`](/ann/m-pipeline)" in shard.text
    info = ann.api.model_info("ann/m-pipeline")
    assert {"base_model:org/model", "shardhub-pipeline", "license:apache-2.0"} <= set(info.tags)


@pytest.fixture
def over_xet(served) -> Iterator[None]:
    """The client's default, until the Hub of the test is gone."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", False)
        yield


@pytest.mark.usefixtures("over_xet")
def test_hub_without_xet_is_sent_lfs(ann: Pusher, model: Path, wire: Wire) -> None:
    """The client's default is Xet; a Hub without it is detected before the first upload."""
    from huggingface_hub import constants

    wire.fault("GET", "/xet-write-token/", lambda _: JSONResponse({"error": "Not Found"}, 404))
    done = ann.push(model, [4])
    assert done.pipeline.action is Action.CREATE
    assert wire.count("GET", "/xet-write-token/") == 1
    assert wire.put_bytes == done.uploaded_bytes
    assert not constants.HF_HUB_DISABLE_XET, "another Hub of this process may have Xet"


@pytest.mark.usefixtures("over_xet")
def test_push_goes_over_xet(ann: Pusher, model: Path, wire: Wire) -> None:
    """Where the Hub has Xet, weights are sent over it; an update with other cuts sends nothing twice."""
    first = ann.push(model, [4])
    assert first.pipeline.action is Action.CREATE
    assert wire.count("POST", "/v1/shards") > 0
    assert wire.put_bytes == 0
    shard = ann.api.model_info("ann/m-shard-1", files_metadata=True)
    weights = {file.rfilename: file.lfs.sha256 for file in shard.siblings if file.lfs is not None}
    for name, sha256 in weights.items():
        with open(ann.api.hf_hub_download("ann/m-shard-1", name, cache_dir=ann.cache), "rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == sha256
    assert ann.push(model, [4]).uploaded_bytes == 0


def test_licence_texts_go_along(ann: Pusher, model: Path) -> None:
    for name in ("LICENSE", "USE_POLICY.md", "Notice.txt", "licensed.py"):
        (model / name).write_text(name)
    ann.push(model, [4])
    for repo in ("ann/m-shard-1", "ann/m-pipeline"):
        files = set(ann.api.list_repo_files(repo))
        assert {"LICENSE", "USE_POLICY.md", "Notice.txt"} <= files
        assert "licensed.py" not in files


def test_stage_digest_is_that_of_a_split_into_folders(ann: Pusher, model: Path, tmp_path: Path) -> None:
    """A shard has the same digest, published or on disk."""
    from shardhub.checkpoint.checkpoint import open_checkpoint
    from shardhub.splitting.split import split
    from tests.checkpoints import FOLDER, contents_of, stages_of

    checkpoint = open_checkpoint(model)
    made = split(
        checkpoint, contents_of(checkpoint), stages_of(checkpoint, [4]), tmp_path / "out", name="x", source=FOLDER
    )
    done = ann.push(model, [4])
    assert done.stage_digests == tuple(shard.digest for shard in made.shards)
    assert done.pipeline_id == made.pipeline_id
    data = (tmp_path / "out" / "x-shard-0" / "stage.json").read_bytes()
    assert decode_identified(Stage, data, where="").digest == done.stage_digests[0]
