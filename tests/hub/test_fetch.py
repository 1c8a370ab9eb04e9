"""Fetching: only what is needed, only what was published, whatever the network does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, get_session

from shardhub.errors import (
    AccessError,
    Conflict,
    DigestMismatch,
    DiskFull,
    FormatError,
    HubRefused,
    HubUnreachable,
    IntegrityError,
    NotFound,
    UsageError,
)
from shardhub.hub.cache import Cache
from shardhub.hub.calls import HubCalls
from shardhub.hub.client import hub_api
from shardhub.hub.fetch import Fetcher
from shardhub.hub.pinned_repo import PinnedRepo
from shardhub.hub.ranges import Patience, RemoteFile
from shardhub.hub.reference import Reference
from shardhub.hub.remote_repo import look
from shardhub.hub.retry import is_passing
from shardhub.hub.snapshot import FetchProgress
from shardhub.localhub.server import RunningHub
from shardhub.locks import locked
from shardhub.manifest import encode
from shardhub.naming import MANIFEST_FILE
from shardhub.shard import Pipeline, read_pipeline, read_shard
from shardhub.upstream.hub_client import hub_headers
from tests import cut
from tests.hub import faulty
from tests.hub.fetching import FETCH, command, run_fetch
from tests.hub.published import OVER_LFS, Published, change_json, publish
from tests.waiting import wait_until

pytestmark = OVER_LFS

LAYER = "layer-00001.safetensors"


def shard_of(published: Published, index: int = 0) -> Reference:
    return Reference(repo=published.shards[index], revision=published.commits[index])


def same_weights(folder: Path, original: Path) -> bool:
    names = {file.name for file in read_shard(original).stage.weight_files}
    assert {path.name for path in folder.glob("*.safetensors")} == names
    return all((folder / name).read_bytes() == (original / name).read_bytes() for name in names)


def test_shard_is_fetched_and_nothing_else(fetcher: Fetcher, published: Published, net: faulty.Network) -> None:
    """The folder has the published content; the cache holds documents and weights, but no card and no index."""
    folder = fetcher.fetch(shard_of(published))
    original = cut.shard_folder(published.local, 0)
    assert same_weights(folder, original)
    assert read_shard(folder).digest == read_shard(original).digest
    assert read_shard(folder).name == published.shards[0]
    others = {path.name for path in folder.iterdir()} - {path.name for path in folder.glob("*.safetensors")}
    assert others == {"stage.json", "tensors.json", "config.json", "proof.json"}
    assert len(list(fetcher.cache.blobs.iterdir())) == len({path.resolve() for path in folder.iterdir()})


def test_second_fetch_asks_nothing(fetcher: Fetcher, published: Published, net: faulty.Network) -> None:
    """A cached commit is not requested again."""
    first = fetcher.fetch(shard_of(published))
    net.forget()
    assert fetcher.fetch(shard_of(published)) == first
    assert net.requests == []


def test_pipeline_is_fetched(fetcher: Fetcher, published: Published) -> None:
    """Manifest, configuration and tokenizer are fetched and checked against the manifest's digests."""
    pipeline = fetcher.pipeline(Reference(repo=published.pipeline))
    assert pipeline.manifest == published.manifest
    assert {path.name for path in pipeline.folder.iterdir()} == {MANIFEST_FILE, *published.manifest.files}


def test_other_cut_fetches_only_what_is_new(
    fetcher: Fetcher,
    published: Published,
    api: HfApi,
    user: str,
    whole_model: Path,
    tmp_path: Path,
    net: faulty.Network,
) -> None:
    """Layers that another shard brought are in the cache: their weight files are not sent again."""
    for index in range(2):
        fetcher.fetch(shard_of(published, index))
    other = publish(api, user, cut.cut(whole_model, tmp_path / "other", (2, 4), name="o"), tmp_path)
    net.forget()
    for index in range(3):
        folder = fetcher.fetch(shard_of(other, index))
        assert same_weights(folder, cut.shard_folder(other.local, index))
    assert net.fetched(".safetensors") == 0


def test_progress_counts_bytes(reader: HfApi, published: Published, tmp_path: Path) -> None:
    """Progress counts up to the bytes of the weight files."""
    seen: list[FetchProgress] = []
    Fetcher(lambda: reader, Cache(tmp_path / "c"), progress=seen.append).fetch(shard_of(published))
    done = [state.done_bytes for state in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total_bytes == read_shard(cut.shard_folder(published.local, 0)).stage.size_bytes


# What the pipeline says


def test_commit_is_the_one_the_pipeline_pins(fetcher: Fetcher, fresh: Published, api: HfApi, said: list[str]) -> None:
    """Without a revision, a shard is taken at the commit in its pipeline's manifest, even if main has moved."""
    moved = api.upload_file(path_or_fileobj=b"new", path_in_repo="README.md", repo_id=fresh.shards[0]).oid
    folder = fetcher.fetch(Reference(repo=fresh.shards[0]))
    assert folder.name == fresh.commits[0] != moved
    assert said == []


def test_main_is_taken_and_reported_without_a_pipeline(
    fetcher: Fetcher, fresh: Published, api: HfApi, said: list[str]
) -> None:
    """A shard whose pipeline is gone is taken from main, with a note."""
    api.delete_repo(fresh.pipeline)
    assert fetcher.fetch(Reference(repo=fresh.shards[0])).name == fresh.commits[0]
    assert len(said) == 1
    assert "using the branch main" in said[0]


def test_main_that_moves_during_a_fetch_mixes_nothing(
    fetcher: Fetcher, fresh: Published, api: HfApi, net: faulty.Network
) -> None:
    """A commit pushed while files are fetched is not in the snapshot."""
    reference = Reference(repo=fresh.shards[0], revision="main")
    moves = []

    def move(path: str) -> None:
        if path.endswith(LAYER) and not moves:
            moves.append(path)
            api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=fresh.shards[0])

    net.on_request = move
    folder = fetcher.fetch(reference)
    assert moves
    assert folder.name == fresh.commits[0]
    assert same_weights(folder, cut.shard_folder(fresh.local, 0))


def test_shard_that_is_not_the_manifests_is_refused(fetcher: Fetcher, published: Published) -> None:
    """A repo that holds another stage than the manifest names is refused before a weight is fetched."""
    with pytest.raises(DigestMismatch, match="not the shard that the manifest names"):
        fetcher.fetch(shard_of(published), digest=published.manifest.stages[1].digest)
    assert not list(fetcher.cache.root.glob("blobs/*"))


# Unknown, private, gated


def test_unknown_repo_and_revision(fetcher: Fetcher, published: Published, said: list[str]) -> None:
    """An unknown repo or revision is named, with the source of the token but not the token."""
    with pytest.raises(NotFound, match="The repo ann/nothing does not exist") as caught:
        fetcher.fetch(Reference(repo="ann/nothing"))
    assert "the token given" in caught.value.why
    assert "hf_" not in str(caught.value)
    with pytest.raises(NotFound, match="does not have the revision 'v9'"):
        fetcher.fetch(Reference(repo=published.shards[0], revision="v9"))


def test_short_commit_is_resolved_if_it_is_unique(
    fetcher: Fetcher, fresh: Published, api: HfApi, shared_hub: RunningHub
) -> None:
    """Commits of every branch count; a tag or branch of that name comes first; several or none are an error."""
    repo, commit = fresh.pipeline, str(api.model_info(fresh.pipeline).sha)
    short = commit[:7]
    assert fetcher.fetch(Reference(repo=repo, revision=short)).name == commit
    api.create_branch(repo, branch="later")
    aside = api.upload_file(path_or_fileobj=b"1", path_in_repo="notes.txt", repo_id=repo, revision="later").oid
    assert fetcher.fetch(Reference(repo=repo, revision=aside[:9])).name == aside
    with pytest.raises(NotFound, match="0000000") as error:
        fetcher.fetch(Reference(repo=repo, revision="0000000"))
    assert "starts with these digits" in error.value.why
    twin = short + "".join("1" if digit == "0" else "0" for digit in commit[7:])
    put_commit(shared_hub, repo, commit, twin)
    with pytest.raises(UsageError, match=f"2 commits that start with {short}") as several:
        fetcher.fetch(Reference(repo=repo, revision=short))
    assert twin[:20] in several.value.why
    assert fetcher.fetch(Reference(repo=repo, revision=commit[:9])).name == commit
    api.create_tag(repo, tag=short, revision=aside)
    assert fetcher.fetch(Reference(repo=repo, revision=short)).name == aside


def test_short_commit_in_the_cache_needs_no_hub(
    fetcher: Fetcher, published: Published, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    folder = fetcher.fetch(shard_of(published))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetcher.fetch(Reference(repo=published.shards[0], revision=published.commits[0][:7])) == folder
    assert "Using the cached commit" in said[-1]


def put_commit(running: RunningHub, repo: str, commit: str, twin: str) -> None:
    """Give the Hub's branch main a second commit with a chosen id and the same files."""
    namespace, name = repo.split("/")
    with running.hub.catalog.writing() as connection:
        number = connection.execute(
            "SELECT id FROM repos WHERE namespace = ? AND name = ?", (namespace, name)
        ).fetchone()["id"]
        connection.execute(
            "INSERT INTO commits SELECT repo, ?, id, title, message, author, date, tree FROM commits "
            "WHERE repo = ? AND id = ?",
            (twin, number, commit),
        )
        connection.execute("UPDATE refs SET target = ? WHERE repo = ? AND name = 'refs/heads/main'", (twin, number))


def test_private_repo_without_token(net: faulty.Network, api: HfApi, fresh: Published, tmp_path: Path) -> None:
    """A private repo looks absent without a token, and the message says that a token is missing."""
    api.update_repo_settings(fresh.shards[0], visibility="private")
    stranger = Fetcher(lambda: hub_api(net.endpoint), Cache(tmp_path / "c"))
    with pytest.raises((NotFound, AccessError), match="or it is private") as caught:
        stranger.fetch(Reference(repo=fresh.shards[0]))
    assert "no token" in caught.value.why


@pytest.mark.parametrize(("code", "headers"), [(401, {}), (403, {}), (403, {"X_Error_Code": "GatedRepo"})])
def test_refused_access(
    fetcher: Fetcher, published: Published, net: faulty.Network, code: int, headers: dict[str, str]
) -> None:
    """401, 403 and gated repos are access errors."""
    net.when("/api/models", faulty.status(code, **headers))
    with pytest.raises(AccessError) as caught:
        fetcher.fetch(Reference(repo=published.shards[0]))
    assert "the token given to this command" in caught.value.why


def test_a_models_repo_is_refused_as_a_shard(fetcher: Fetcher, api: HfApi, user: str, whole_model: Path) -> None:
    """A model's repo is refused with the command for models."""
    repo = api.create_repo(f"{user}/model").repo_id
    api.upload_file(path_or_fileobj=whole_model / "config.json", path_in_repo="config.json", repo_id=repo)
    with pytest.raises(UsageError, match="neither a shard nor a pipeline"):
        fetcher.fetch(Reference(repo=repo))


# The network


@pytest.mark.parametrize("code", [429, 500, 502, 503])
@pytest.mark.parametrize("part", ["/api/models/ann/m-shard-0", LAYER])
def test_busy_hub_is_asked_again(
    fetcher: Fetcher, published: Published, net: faulty.Network, waited: list[float], part: str, code: int
) -> None:
    """After a burst of refusals by a busy Hub, the request is repeated and succeeds."""
    net.when(part, faulty.status(code), times=3)
    folder = fetcher.fetch(Reference(repo=published.shards[0], revision="main"))
    assert same_weights(folder, cut.shard_folder(published.local, 0))
    assert len(waited) == 3
    assert all(0 < wait <= 8 for wait in waited)


def test_retry_after_is_honoured_within_a_minute(
    fetcher: Fetcher, published: Published, net: faulty.Network, waited: list[float]
) -> None:
    """Retry-After is honoured, up to 60 s."""
    net.when(LAYER, faulty.status(429, Retry_After="17"))
    net.when(LAYER, faulty.status(503, Retry_After="4000"))
    fetcher.fetch(shard_of(published))
    assert [17 <= wait < 18.1 for wait in waited[:1]] == [True]
    assert waited[1] == 60


def test_hub_that_stays_busy(fetcher: Fetcher, published: Published, net: faulty.Network, waited: list[float]) -> None:
    """After five tries an error says so; fetched bytes stay for the next run, and nothing looks whole."""
    net.when(LAYER, faulty.status(503), times=5)
    with pytest.raises(HubUnreachable, match="not completely cached") as caught:
        fetcher.fetch(shard_of(published))
    assert LAYER in caught.value.why
    assert "shardhub pull" in caught.value.hint
    assert len(waited) == 4
    assert fetcher.cache.snapshot(published.shards[0], published.commits[0]) is None
    assert same_weights(fetcher.fetch(shard_of(published)), cut.shard_folder(published.local, 0))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_cut_connection_is_resumed(fetcher: Fetcher, published: Published, net: faulty.Network, share: float) -> None:
    """A broken connection is resumed at the byte where it broke: no byte is sent twice."""
    net.when(LAYER, faulty.cut(share))
    folder = fetcher.fetch(shard_of(published))
    assert same_weights(folder, cut.shard_folder(published.local, 0))
    assert net.fetched(LAYER) == (folder / LAYER).stat().st_size


@pytest.mark.parametrize("stall_timeout_s", [1])
def test_stalled_body_is_cut_and_resumed(fetcher: Fetcher, published: Published, net: faulty.Network) -> None:
    """A body that stalls is given up after the timeout, and resumed."""
    net.when(LAYER, faulty.stall(0.5))
    start = time.monotonic()
    folder = fetcher.fetch(shard_of(published))
    assert time.monotonic() - start < 60
    assert same_weights(folder, cut.shard_folder(published.local, 0))


@pytest.mark.usefixtures("short_periods")
def test_body_that_drips_is_cut_and_resumed(
    fetcher: Fetcher, published: Published, net: faulty.Network, waited: list[float]
) -> None:
    """A server that sends a byte just within each timeout is given up as one that stalls."""
    net.when(LAYER, faulty.drip(0.5))
    folder = fetcher.fetch(shard_of(published))
    assert waited
    assert same_weights(folder, cut.shard_folder(published.local, 0))


@pytest.mark.usefixtures("short_periods")
def test_listing_that_drips_is_cut(reader: HfApi, published: Published, net: faulty.Network) -> None:
    """Other answers have to come at the least rate, too, and may be asked for again."""
    net.when("/api/models/", faulty.drip(0))
    with pytest.raises(httpx2.TransportError, match="bytes came in") as caught:
        get_session().get(f"{net.endpoint}/api/models/{published.shards[0]}", headers=hub_headers(reader))
    assert is_passing(caught.value)


@pytest.mark.usefixtures("short_periods")
def test_server_that_only_drips_is_given_up(
    reader: HfApi, published: Published, net: faulty.Network, patience: Patience
) -> None:
    """Bytes that drip are no progress for which a server is tried for ever."""
    repo = PinnedRepo(reader, published.shards[0], published.commits[0], replace(patience, num_tries=2))
    net.when(LAYER, faulty.drip(0), times=1000)
    with repo.open(LAYER) as file, pytest.raises(HubUnreachable, match="bytes came in"):
        file.read_into(0, memoryview(bytearray(file.size_bytes)))
    assert sum(path.endswith(LAYER) for _, path, _ in net.requests) == 2


@pytest.fixture
def large_file(api: HfApi, user: str, reader: HfApi, patience: Patience) -> Callable[[], RemoteFile]:
    """Opens a file of 24 MB on the Hub."""
    name = api.create_repo(f"{user}/large").repo_id
    done = api.upload_file(path_or_fileobj=bytes(range(250)) * 96_000, path_in_repo="x.safetensors", repo_id=name)
    repo = PinnedRepo(reader, name, done.oid, patience)
    return lambda: repo.open("x.safetensors")


def test_whole_answer_is_read_on(large_file: Callable[[], RemoteFile], net: faulty.Network, said: list[str]) -> None:
    """Of a server that ignores ranges, one answer gives all ranges that come in order."""
    net.when(".safetensors", ignore_range=True, times=1000)
    buffer = bytearray(250)
    with large_file() as file:
        for at in (0, 2_000_000, 20_000_000):
            file.read_into(at, memoryview(buffer))
            assert buffer == bytes(range(250))
    assert len([path for _, path, _ in net.requests if path.endswith(".safetensors")]) == 1
    assert [text.partition(":")[0] for text in said] == ["127.0.0.1 sends whole files where only ranges are requested"]


def test_server_that_ignores_ranges_is_named(
    large_file: Callable[[], RemoteFile], net: faulty.Network, said: list[str]
) -> None:
    """A file that would be read again and again from its start is refused, however it is opened."""
    net.when(".safetensors", ignore_range=True, times=1000)

    def read_the_end() -> None:
        with large_file() as file:
            file.read_into(23_999_000, memoryview(bytearray(1000)))

    read_the_end()
    read_the_end()
    with pytest.raises(HubRefused, match=r"127\.0\.0\.1 does not send ranges of .*x\.safetensors") as caught:
        read_the_end()
    assert "72.00 MB would have been read only to be skipped" in caught.value.why
    assert len(said) == 1


def test_ignored_range_restarts_right(fetcher: Fetcher, published: Published, net: faulty.Network) -> None:
    """If a server ignores the range and sends the whole file, it is read from the file's start."""
    net.when(LAYER, faulty.cut(0.5))
    net.when(LAYER, ignore_range=True)
    folder = fetcher.fetch(shard_of(published))
    assert same_weights(folder, cut.shard_folder(published.local, 0))
    assert any("bytes=" in str(asked) and not str(asked).startswith("bytes=0") for _, _, asked in net.requests)


@pytest.mark.parametrize("change", [-5, 5])
def test_body_of_the_wrong_length_is_refused(
    fetcher: Fetcher, published: Published, net: faulty.Network, change: int
) -> None:
    """A body shorter or longer than announced is refused each time, and no part of it is kept as whole."""

    def wrong(answer: faulty.Answer) -> None:
        answer.body = answer.body[:change] if change < 0 else answer.body + b"\0" * change

    net.when(LAYER, wrong, times=100)
    with pytest.raises(HubUnreachable):
        fetcher.fetch(shard_of(published))
    assert fetcher.cache.snapshot(published.shards[0], published.commits[0]) is None


def test_flipped_bit_is_fetched_again(
    fetcher: Fetcher, published: Published, net: faulty.Network, said: list[str]
) -> None:
    """A body of the right size with wrong bytes is discarded and fetched once more."""
    net.when(LAYER, faulty.flip)
    assert same_weights(fetcher.fetch(shard_of(published)), cut.shard_folder(published.local, 0))
    assert [text for text in said if "sha256" in text]


def test_flipped_bit_twice_is_corrupt(fetcher: Fetcher, published: Published, net: faulty.Network) -> None:
    """A second body with wrong bytes is an error, and none of it is kept."""
    net.when(LAYER, faulty.flip, times=2)
    with pytest.raises(DigestMismatch, match="is corrupt"):
        fetcher.fetch(shard_of(published))
    digests = {file.name: file.sha256 for file in read_shard(cut.shard_folder(published.local, 0)).stage.weight_files}
    assert not fetcher.cache.blob(digests[LAYER]).exists()
    assert not [path for path in fetcher.cache.root.glob("partials/*") if path.name.startswith(digests[LAYER])]


def test_flipped_bit_in_a_document(fetcher: Fetcher, published: Published, net: faulty.Network) -> None:
    """Small files are checked against the listing's digests, too."""
    net.when("stage.json", faulty.flip, times=2)
    with pytest.raises(DigestMismatch, match="arrived damaged twice"):
        fetcher.fetch(shard_of(published))


def test_flipped_bit_in_a_document_that_is_looked_at(reader: HfApi, published: Published, net: faulty.Network) -> None:
    """Documents that a push or a removal relies on are checked too: read again, then refused."""
    calls = HubCalls(api=reader)
    repo = shard_of(published).repo
    stage = read_shard(cut.shard_folder(published.local, 0)).stage
    net.when("stage.json", faulty.flip)
    remote = look(calls, repo)
    assert remote is not None
    assert remote.stage == stage
    net.when("stage.json", faulty.flip, times=2)
    with pytest.raises(DigestMismatch, match="arrived damaged twice"):
        look(calls, repo)


@pytest.mark.parametrize("part", ["/api/models", "stage.json", LAYER])
def test_login_page_instead_of_an_answer(
    fetcher: Fetcher, published: Published, net: faulty.Network, part: str
) -> None:
    """A captive portal's login page is recognised as such."""
    net.when(part, faulty.login_page, times=100)
    with pytest.raises(HubUnreachable) as caught:
        fetcher.fetch(Reference(repo=published.shards[0], revision="main"))
    assert "is not a Hub" in str(caught.value)


def test_token_stays_with_the_hub(
    fetcher: Fetcher, fresh: Published, api: HfApi, net: faulty.Network, shared_hub: RunningHub
) -> None:
    """The token is not sent to another host after a redirect."""
    api.update_repo_settings(fresh.shards[0], visibility="public")
    seen: list[str | None] = []
    with faulty.network(shared_hub.endpoint) as elsewhere:
        elsewhere.on_token = seen.append

        def redirect(answer: faulty.Answer) -> None:
            answer.status, answer.body = 302, b""
            path = f"/{fresh.shards[0]}/resolve/{fresh.commits[0]}/{LAYER}"
            answer.headers = {"Location": elsewhere.endpoint.replace("127.0.0.1", "localhost") + path}

        net.when(LAYER, redirect)
        fetcher.fetch(shard_of(fresh))
    assert seen == [None]


# Without a network


def test_offline_start_from_the_cache(
    published: Published, fetcher: Fetcher, tmp_path: Path, patience: Patience, said: list[str]
) -> None:
    """A cached shard starts without the Hub, with one line of log."""
    first = fetcher.fetch(Reference(repo=published.shards[0]))
    offline = Fetcher(lambda: hub_api("http://127.0.0.1:9"), fetcher.cache, patience=patience)
    said.clear()
    assert offline.fetch(Reference(repo=published.shards[0])) == first
    assert [text for text in said if text.startswith("warning:")] == said[-1:]
    assert "Using the cached commit" in said[-1]


def test_offline_without_the_files(published: Published, fetcher: Fetcher, patience: Patience) -> None:
    """A shard that is not cached is named, with the command to run once online."""
    offline = Fetcher(lambda: hub_api("http://127.0.0.1:9"), fetcher.cache, patience=patience)
    with pytest.raises(HubUnreachable, match="not completely cached") as caught:
        offline.fetch(Reference(repo=published.shards[0]))
    assert "None of its files" in caught.value.why
    assert caught.value.hint.endswith(f"shardhub pull {published.shards[0]}")


def test_offline_variable(fetcher: Fetcher, published: Published, monkeypatch: pytest.MonkeyPatch, net) -> None:
    """HF_HUB_OFFLINE is obeyed: no request is made."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE"):
        fetcher.fetch(Reference(repo=published.shards[0]))
    assert net.requests == []


# What a repo may not do


def test_code_is_never_fetched(fetcher: Fetcher, fresh: Published, api: HfApi, net: faulty.Network) -> None:
    """Python, pickles and cards in a shard's repo are never requested."""
    commit = ""
    for name in ("modeling.py", "pytorch_model.bin", "weights.pkl", "extra.safetensors", "sub/stage.json"):
        commit = api.upload_file(path_or_fileobj=b"x", path_in_repo=name, repo_id=fresh.shards[0]).oid
    folder = fetcher.fetch(Reference(repo=fresh.shards[0], revision=commit))
    assert not {path.name for path in folder.iterdir()} & {"modeling.py", "pytorch_model.bin", "extra.safetensors"}
    asked = " ".join(path for _, path, _ in net.requests)
    for name in ("modeling", "pytorch_model", "weights.pkl", "extra", "README"):
        assert name not in asked


@pytest.mark.parametrize("name", ["run.py", "pytorch_model.bin", "model.safetensors", "anything.so"])
def test_manifest_that_names_code_is_refused(
    fetcher: Fetcher, fresh: Published, api: HfApi, net: faulty.Network, name: str
) -> None:
    """A manifest cannot make a client fetch files that pipelines never carry."""
    manifest = fresh.manifest.model_copy(update={"files": {**fresh.manifest.files, name: "0" * 64}})
    api.upload_file(path_or_fileobj=encode(manifest), path_in_repo=MANIFEST_FILE, repo_id=fresh.pipeline)
    with pytest.raises(FormatError, match="a pipeline may not have"):
        fetcher.pipeline(Reference(repo=fresh.pipeline))


def test_weight_file_that_was_replaced(fetcher: Fetcher, fresh: Published, api: HfApi, net) -> None:
    """A weight file that differs from stage.json is recognised from the listing, before a byte of it is fetched."""
    commit = api.upload_file(path_or_fileobj=b"x" * 100, path_in_repo=LAYER, repo_id=fresh.shards[0]).oid
    net.forget()
    with pytest.raises(DigestMismatch, match="differs from the file that stage"):
        fetcher.fetch(Reference(repo=fresh.shards[0], revision=commit))
    assert net.fetched(".safetensors") == 0


def test_changed_config_is_refused(fetcher: Fetcher, fresh: Published, api: HfApi) -> None:
    """A config.json that differs from the stage's by one number is refused as another model's."""
    commit = change_json(api, fresh.shards[0], "config.json", {"rope_theta": 1.0})
    with pytest.raises(DigestMismatch, match="configuration"):
        fetcher.fetch(Reference(repo=fresh.shards[0], revision=commit))


# The disk


def test_lack_of_room_is_reported_before_the_start(
    fetcher: Fetcher, published: Published, net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk without enough room is refused before a weight is fetched."""
    monkeypatch.setattr(Cache, "free_bytes", lambda self: 10_000)
    net.forget()
    with pytest.raises(DiskFull, match="not have enough free space") as caught:
        fetcher.fetch(shard_of(published))
    assert "MB is needed" in caught.value.why
    assert net.fetched(".safetensors") == 0


def test_disk_that_fills_up(published: Published, net: faulty.Network, token: str, tmp_path: Path) -> None:
    """A failed write reports the free space and removes the partial file."""
    program = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))\n" + FETCH
    )
    done = run_fetch(program, net.endpoint, token, shard_of(published), tmp_path / "c")
    assert "DiskFull" in done.stdout, done.stderr
    assert not list((tmp_path / "c" / "partials").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that not even root may write")
def test_read_only_cache(reader: HfApi, published: Published) -> None:
    """A read-only cache is named, with the option for another one."""
    with pytest.raises(AccessError, match="cache /sys/shardhub cannot be written") as caught:
        Fetcher(lambda: reader, Cache(Path("/sys/shardhub"))).fetch(shard_of(published))
    assert "`cache_dir`" in caught.value.hint


def test_cache_that_is_a_file(reader: HfApi, published: Published, tmp_path: Path) -> None:
    """A cache path that is a file is refused."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="not a folder"):
        Fetcher(lambda: reader, Cache(tmp_path / "file")).fetch(shard_of(published))


def test_kill_in_the_middle_is_finished_by_the_next_run(
    published: Published, net: faulty.Network, token: str, tmp_path: Path, fetcher: Fetcher
) -> None:
    """After SIGKILL nothing looks whole; the next run resumes the partial file and ends with the right bytes."""
    cache = fetcher.cache
    buffer_bytes = 1 << 12  # so that a part of a small file is written
    files = read_shard(cut.shard_folder(published.local, 0)).stage.weight_files
    size, digest = next((file.size_bytes, file.sha256) for file in files if file.name == LAYER)
    half = size // 2 // buffer_bytes * buffer_bytes
    net.when(LAYER, lambda answer: setattr(answer, "stall_at", half))
    program = f"from shardhub.hub import download\ndownload._BUFFER_BYTES = {buffer_bytes}\n" + FETCH
    child = subprocess.Popen(command(program, net.endpoint, token, shard_of(published), cache.root))
    partial = cache.partial(digest, is_locked=True)
    wait_until(lambda: child.poll() is not None or (partial.exists() and partial.stat().st_size >= half), 120)
    assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert cache.snapshot(published.shards[0], published.commits[0]) is None
    folder = fetcher.fetch(shard_of(published))
    assert same_weights(folder, cut.shard_folder(published.local, 0))
    assert net.fetched(LAYER) == size
    assert not list(cache.root.glob("partials/*"))


def test_partial_file_with_other_bytes(fetcher: Fetcher, published: Published, net: faulty.Network) -> None:
    """A partial file with wrong bytes fails its sha256 and is fetched anew."""
    stage = read_shard(cut.shard_folder(published.local, 0)).stage
    digest = next(file.sha256 for file in stage.weight_files if file.name == LAYER)
    fetcher.cache.prepare()
    fetcher.cache.partial(digest, is_locked=True).write_bytes(b"\xff" * 1000)
    assert same_weights(fetcher.fetch(shard_of(published)), cut.shard_folder(published.local, 0))


def test_stale_partial_files_are_swept(fetcher: Fetcher, published: Published) -> None:
    """A partial file a day old is removed; one an hour old stays."""
    fetcher.cache.prepare()
    old, young = (fetcher.cache.root / "partials" / name for name in ("a" * 64, "b" * 64))
    for path, age_s in ((old, 25 * 3600), (young, 3600)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s,) * 2)
    fetcher.fetch(shard_of(published))
    assert not old.exists()
    assert young.exists()


def test_two_processes_fetch_once(published: Published, net: faulty.Network, token: str, tmp_path: Path) -> None:
    """Of two processes one fetches, the other reports that it waits; both get the shard."""
    is_waited = threading.Event()
    net.on_request = lambda path: path.endswith(LAYER) and is_waited.wait(120)
    arguments = command(FETCH, net.endpoint, token, shard_of(published), tmp_path / "c")

    def output(child: subprocess.Popen[str]) -> str:
        lines = []
        for line in child.stdout or ():
            lines.append(line)
            if "waiting for another process" in line:
                is_waited.set()
        return "".join(lines)

    children = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(output, children))
    for child in children:
        child.communicate(timeout=60)
    assert sum("waiting for another process" in text for text in outputs) == 1
    assert all(same_weights(Path(text.splitlines()[-1]), cut.shard_folder(published.local, 0)) for text in outputs)
    for file in read_shard(cut.shard_folder(published.local, 0)).stage.weight_files:
        assert net.fetched(f"/{file.name}") == file.size_bytes


def test_waiting_has_an_end(tmp_path: Path) -> None:
    """The wait for another process ends after a time, and the error names that process."""
    said: list[str] = []
    with (
        locked(tmp_path / "lock", what="a/b"),
        pytest.raises(Conflict, match="still fetching a/b"),
        locked(tmp_path / "lock", what="a/b", notice=said.append, timeout_s=0.05),
    ):
        pass
    assert said == ["waiting for another process to fetch a/b"]
    with locked(tmp_path / "lock", what="a/b", timeout_s=0) as is_held:
        assert is_held


def test_link_out_of_the_cache_is_refused(fetcher: Fetcher, published: Published, tmp_path: Path) -> None:
    """A link that was changed to lead out of the cache is not followed."""
    folder = fetcher.fetch(shard_of(published))
    (tmp_path / "elsewhere").write_bytes((folder / LAYER).read_bytes())
    (folder / LAYER).unlink()
    (folder / LAYER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="was not put there by shardhub"):
        fetcher.fetch(shard_of(published))


def test_lost_blob_is_fetched_again(fetcher: Fetcher, published: Published, net: faulty.Network) -> None:
    """A snapshot that lost a file is no longer whole: that file alone is fetched again."""
    folder = fetcher.fetch(shard_of(published))
    (folder / LAYER).resolve().unlink()
    net.forget()
    assert same_weights(fetcher.fetch(shard_of(published)), cut.shard_folder(published.local, 0))
    assert {path.rsplit("/", 1)[1] for path in net.sent_bytes if path.endswith(".safetensors")} == {LAYER}


def test_pull_finds_damage_on_the_disk(
    fetcher: Fetcher, published: Published, net: faulty.Network, said: list[str]
) -> None:
    """`pull` reads all bytes again, and replaces those that the disk has changed."""
    folder = fetcher.fetch(shard_of(published))
    blob = (folder / LAYER).resolve()
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    assert same_weights(fetcher.pull(shard_of(published)), cut.shard_folder(published.local, 0))
    assert [text for text in said if "damaged" in text]


def test_pipeline_reads_from_the_cache(fetcher: Fetcher, published: Published, cut_in_two: Pipeline) -> None:
    """The cached folder is read like any other pipeline."""
    folder = fetcher.fetch(Reference(repo=published.pipeline))
    assert read_pipeline(folder).manifest.pipeline_id == cut_in_two.manifest.pipeline_id
