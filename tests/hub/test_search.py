"""Searching for pipelines on a local Hub, with the real client."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from shardhub.localhub.routes import repos
from shardhub.localhub.server import RunningHub
from shardhub.manifest import NumericClass, Parity, ParityPrompt, canonical, encode
from shardhub.naming import MANIFEST_FILE
from shardhub.parity import PARITY_FOLDER
from shardhub.shard import Pipeline
from shardhub.usecases.search import SearchSettings, search
from tests.hub import faulty
from tests.hub.published import OVER_LFS, Published

pytestmark = OVER_LFS

NUM_REPOS = 45


@pytest.fixture
def as_reader(monkeypatch: pytest.MonkeyPatch, net: faulty.Network, token: str) -> None:
    """The library uses the Hub through `net`, as a user who sees ann's repos."""
    monkeypatch.setenv("HF_ENDPOINT", net.endpoint)
    monkeypatch.setenv("HF_TOKEN", token)


def make_pipeline(api: HfApi, repo: str, pipeline: Pipeline, *, card: str, private: bool = False) -> None:
    """A repo with a manifest and a card."""
    api.create_repo(repo, private=private)
    documents = {"README.md": card.encode(), MANIFEST_FILE: encode(pipeline.manifest)}
    added = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=data) for path, data in documents.items()]
    api.create_commit(repo, added, commit_message="Pipeline")


@pytest.fixture
def card(cut_in_two: Pipeline) -> str:
    """A pipeline's card."""
    return (cut_in_two.folder / "README.md").read_text()


def test_pipeline_is_listed_with_what_it_is(
    as_reader: None, published: Published, net: faulty.Network, cut_in_two: Pipeline
) -> None:
    """Stages, layers, size and parity come from small documents: shards are not touched."""
    net.forget()
    [one] = search("pipeline M", SearchSettings(namespace="ann"))
    manifest = published.manifest
    assert (one.repo, one.private, one.refusal) == (published.pipeline, True, "")
    assert (one.model, one.num_stages, one.num_layers) == (manifest.name, 2, manifest.num_layers)
    assert one.size_bytes == sum(stage.size_bytes for stage in manifest.stages)
    assert one.pipeline_id == manifest.pipeline_id
    assert (one.parity is not None) == (cut_in_two.folder / "parity").is_dir()
    assert len(net.requests) <= 4
    assert search("pipeline nowhere", SearchSettings(namespace="ann")) == ()


def test_private_pipelines_are_listed_for_those_who_see_them(
    monkeypatch: pytest.MonkeyPatch,
    shared_hub: RunningHub,
    api: HfApi,
    user: str,
    token: str,
    cut_in_two: Pipeline,
    card: str,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", shared_hub.endpoint)
    make_pipeline(api, f"{user}/secret-pipeline", cut_in_two, card=card, private=True)
    monkeypatch.setenv("HF_TOKEN", token)
    assert [(one.repo, one.private) for one in search(f"{user} secret")] == [(f"{user}/secret-pipeline", True)]
    monkeypatch.setenv("HF_TOKEN", shared_hub.token("stranger"))
    assert search(f"{user} secret") == ()


def test_several_pages_are_read(
    as_reader: None, monkeypatch: pytest.MonkeyPatch, api: HfApi, user: str, cut_in_two: Pipeline, card: str
) -> None:
    """Every page is followed, up to the limit; repos of another kind are left out."""
    monkeypatch.setattr(repos, "_PAGE", 20)

    def make(number: int) -> None:
        make_pipeline(api, f"{user}/many-{number}-pipeline", cut_in_two, card=card)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make, range(NUM_REPOS)))
    api.create_repo(f"{user}/many-others")
    listed = search("many", SearchSettings(namespace=user))
    assert {one.repo for one in listed} == {f"{user}/many-{number}-pipeline" for number in range(NUM_REPOS)}
    assert len(search("many", SearchSettings(namespace=user, limit=25))) == 25


def test_repo_that_only_has_the_tag_is_left_out(as_reader: None, api: HfApi, user: str, card: str) -> None:
    api.create_repo(f"{user}/empty-pipeline")
    api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=f"{user}/empty-pipeline")
    assert search("empty") == ()


def test_pipeline_with_a_forged_parity_record_is_listed_without_it(
    as_reader: None, api: HfApi, user: str, cut_in_two: Pipeline, card: str
) -> None:
    """A stranger's texts, which would be printed, cannot hold control characters: the record does not count."""
    make_pipeline(api, f"{user}/forged-pipeline", cut_in_two, card=card)
    record = Parity(
        pipeline_id=cut_in_two.manifest.pipeline_id,
        made_at="2026-01-01T00:00:00Z",
        made_by="split",
        shardhub="1",
        mlx_lm="1",
        device="cpu",
        numeric_class=NumericClass(mlx="1", backend="cpu", chip="c", cpu="c", os="o", blas="b"),
        dtype="F16",
        vocab_size=10,
        chunk=4,
        prompts=(ParityPrompt(length=4, tokens=(1, 2)),),
        num_tokens=2,
        tokens_equal=2,
        max_abs_logit_difference=0.0,
        num_nan_steps=0,
    )
    for mlx_lm, is_shown in (("1.0", True), ("1\x1b[2J", False), ("1\nforged", False)):
        data = canonical({**record.model_dump(mode="json"), "mlx_lm": mlx_lm})
        name = f"{PARITY_FOLDER}/20990101T000000Z-cpu-{sha256(data).hexdigest()[:16]}.json"
        api.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id=f"{user}/forged-pipeline")
        [one] = search("forged")
        assert (one.parity is not None) == is_shown
        api.delete_file(name, repo_id=f"{user}/forged-pipeline")
