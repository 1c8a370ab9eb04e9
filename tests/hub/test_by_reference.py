"""Pipelines published by reference: documents only, weights from the source, the same identity and bytes."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import load_file

from shardhub.checkpoint.checkpoint import Checkpoint, open_checkpoint
from shardhub.checkpoint.header import FileSource, encode_header, read_header
from shardhub.checkpoint.weight_files import INDEX_FILE
from shardhub.errors import (
    AccessError,
    DigestMismatch,
    FormatError,
    NotFound,
    ShardhubError,
    UsageError,
)
from shardhub.hub import assemble
from shardhub.hub.cache import Cache
from shardhub.hub.client import hub_api
from shardhub.hub.fetch import Fetcher
from shardhub.hub.push_decisions import Action
from shardhub.hub.ranges import Patience
from shardhub.hub.reference import Reference
from shardhub.localhub.server import RunningHub
from shardhub.manifest import Manifest, Source, SourceLocation, canonical, decode_identified
from shardhub.naming import CARD_FILE, MANIFEST_FILE, RANGES_FILE, STAGE_FILE
from shardhub.shard import read_shard
from shardhub.source_ranges import Assembly, FileRange
from shardhub.splitting.contents import ModelContents
from shardhub.splitting.job import prepare
from shardhub.tensors import TensorSpec
from tests.checkpoints import FOLDER, HIDDEN, contents_of, stages_of, write_checkpoint
from tests.hub import faulty
from tests.hub.fetching import FETCH, command, run_fetch
from tests.hub.published import OVER_LFS
from tests.hub.referring import Referring, push, refer, same_weights, upload_model
from tests.waiting import wait_until

pytestmark = OVER_LFS

ROWS = 4096  # so that weights are most of what travels
WEIGHTS = ".safetensors"
FIRST = "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two files, in each of which the tensors of all layers alternate."""
    folder = tmp_path_factory.mktemp("model") / "model"
    write_checkpoint(folder, 6, rows=ROWS, tied=False)
    return folder


@pytest.fixture(scope="module")
def referring(shared_hub: RunningHub, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Referring:
    """Two stages of it on the Hub; nobody changes them."""
    api = hub_api(shared_hub.endpoint, shared_hub.token("ann"))
    return refer(api, "ann", model, [3], tmp_path_factory.mktemp("referring"))


@pytest.fixture
def fresh(api: HfApi, user: str, model: Path, tmp_path: Path) -> Referring:
    """The same in the user's namespace, for tests that change it."""
    return refer(api, user, model, [3], tmp_path)


@pytest.fixture
def copied(referring: Referring) -> Callable[[int], Path]:
    """Folder of a shard that was cut from the same commit by copying."""
    return lambda index: referring.copied.shards[index].folder


def document(api: HfApi, repo: str, name: str) -> bytes:
    return Path(api.hf_hub_download(repo, name)).read_bytes()


# What is published


def test_documents_only_are_published(api: HfApi, referring: Referring, copied) -> None:
    """No weight file is in a shard's repo, none was uploaded, and stage.json is the copy's to the byte."""
    assert referring.published.uploaded_bytes == 0
    for index, at in enumerate(referring.published.shards):
        files = api.list_repo_files(at.repo)
        assert not [name for name in files if name.endswith(WEIGHTS)]
        assert INDEX_FILE not in files  # it would name files that are not there
        assert RANGES_FILE in files
        assert document(api, at.repo, STAGE_FILE) == (copied(index) / STAGE_FILE).read_bytes()


def test_manifest_names_the_source_in_version_2(api: HfApi, referring: Referring, copied) -> None:
    """The manifest names each shard's repo and the source; the pipeline id is the same as that of an upload."""
    data = document(api, referring.published.pipeline.repo, MANIFEST_FILE)
    manifest = decode_identified(Manifest, data, where=MANIFEST_FILE)
    commit = read_shard(copied(0)).stage.source.commit
    assert manifest.format_version == 2
    assert manifest.pipeline_id == referring.copied.pipeline_id
    for stage, at in zip(manifest.stages, referring.published.shards, strict=True):
        assert [place.model_dump() for place in stage.locations] == [
            {"kind": "repo", "repo": at.repo, "commit": at.commit},
            {"kind": "source", "repo": referring.source, "commit": commit},
        ]
        assert isinstance(stage.locations[1], SourceLocation)


def test_cards_name_the_source_of_the_weights(api: HfApi, referring: Referring) -> None:
    """Shards and pipeline say that they are published by reference, and link to the model."""
    for at in (*referring.published.shards, referring.published.pipeline):
        card = document(api, at.repo, CARD_FILE).decode()
        assert "published by reference" in card
        assert f"[`{referring.source}`](/{referring.source})" in card


def test_source_is_read_once(
    reader: HfApi, api: HfApi, user: str, model: Path, tmp_path: Path, net: faulty.Network
) -> None:
    """Publishing reads each needed byte of the source once, writes no weights to disk, and a second run reads none."""
    repo = upload_model(api, user, model)
    size_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    first = push(reader, user, repo, [3], tmp_path)
    read_bytes = net.fetched(WEIGHTS)
    assert size_bytes <= read_bytes + 4096
    assert read_bytes <= 1.01 * size_bytes
    assert not list((tmp_path / "push").rglob("*.safetensors"))
    net.forget()
    again = push(reader, user, repo, [3], tmp_path)
    assert [at.action for at in (*again.shards, again.pipeline)] == [Action.KEEP] * 3
    assert again.pipeline.commit == first.pipeline.commit
    assert net.fetched(WEIGHTS) < 4096  # its headers


@pytest.mark.parametrize(
    ("source", "is_virtual", "text"),
    [
        (FOLDER, False, "It is a folder on this machine"),
        (Source(repo="ann/m", commit="a" * 40), True, "the quantised weights exist only once they are uploaded"),
    ],
)
def test_weights_that_others_cannot_read_are_not_referred_to(
    model: Path, tmp_path: Path, source: Source, is_virtual: bool, text: str
) -> None:
    """A folder of this machine, and weights that are computed while they are read, are refused."""
    checkpoint = replace(open_checkpoint(model), is_virtual=is_virtual)
    contents, stages = contents_of(checkpoint), stages_of(checkpoint, [3])
    with pytest.raises(UsageError, match=text):
        prepare(checkpoint, contents, stages, tmp_path, name="m", source=source, by_reference=True)


# What is fetched


def test_shard_is_assembled_from_the_source(
    fetcher: Fetcher, referring: Referring, net: faulty.Network, model: Path, copied
) -> None:
    """Its weight files are the copy's, byte for byte, and little more than their bytes is sent."""
    net.forget()
    folder = fetcher.fetch(referring.shard())
    assert same_weights(folder, copied(0))
    size_bytes = sum(path.stat().st_size for path in copied(0).glob("*.safetensors"))
    assert net.fetched(WEIGHTS) <= 1.01 * size_bytes
    commit = read_shard(folder).stage.source.commit
    assert {path for _, path, _ in net.requests if path.endswith(WEIGHTS)} == {
        f"/{referring.source}/resolve/{commit}/{path.name}" for path in model.glob("*.safetensors")
    }


def test_shard_is_taken_at_the_commit_that_its_pipeline_names(
    fetcher: Fetcher, referring: Referring, said: list[str], copied
) -> None:
    """A shard named without a revision is fetched at the commit that its pipeline pins, as one with copies is."""
    folder = fetcher.fetch(Reference(repo=referring.published.shards[1].repo))
    assert same_weights(folder, copied(1))
    assert said == []


@pytest.mark.parametrize("window_bytes", [4096, 20_000, 49_999])
def test_any_window_gives_the_same_bytes(
    fetcher: Fetcher, referring: Referring, copied, window_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How much is held in memory decides the number of requests only."""
    monkeypatch.setattr(assemble, "WINDOW_BYTES", window_bytes)
    assert same_weights(fetcher.fetch(referring.shard()), copied(0))


def test_layers_in_order_take_a_request_each(
    api: HfApi, user: str, fetcher: Fetcher, net: faulty.Network, tmp_path: Path
) -> None:
    """Of a source that has the tensors of each layer together, each weight file takes one request."""
    folder = tmp_path / "ordered"
    write_checkpoint(folder, 4, rows=ROWS, num_files=1)
    in_layer_order(folder / "model-00001-of-00001.safetensors")
    referring = refer(api, user, folder, [2], tmp_path)
    net.forget()
    shard = fetcher.fetch(referring.shard())
    num_files = len(list(shard.glob("*.safetensors")))
    assert sum(path.endswith(WEIGHTS) for _, path, _ in net.requests) == num_files


def test_bytes_that_come_in_turn_are_not_kept(tmp_path: Path) -> None:
    """Of a layer whose large tensor comes after a small one that has to follow it, only the small one is kept."""
    large, small = 16 << 20, 1000
    path = tmp_path / "model.safetensors"
    data = np.random.default_rng(0).bytes(small + large)
    path.write_bytes(data)
    ranges = tuple(
        FileRange(file=path.name, start=start, stop=stop) for start, stop in ((small, small + large), (0, small))
    )
    tracemalloc.start()
    digest = assemble.assembly_sha256(Assembly(header=b"head", ranges=ranges), lambda _: FileSource(path))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert digest == hashlib.sha256(b"head" + data[small:] + data[:small]).hexdigest()
    assert peak_bytes < large / 4


@pytest.mark.parametrize("window_bytes", [100, 1 << 20])
def test_one_source_file_is_open_at_a_time(tmp_path: Path, window_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight file may lie in more source files than the Hub's client has connections."""
    monkeypatch.setattr(assemble, "WINDOW_BYTES", window_bytes)
    num_open = 0

    class Counted(FileSource):
        def __init__(self, path: Path) -> None:
            nonlocal num_open
            super().__init__(path)
            num_open += 1
            assert num_open == 1

        def close(self) -> None:
            nonlocal num_open
            super().close()
            num_open -= 1

    names = [f"model-{number:05d}-of-00150.safetensors" for number in range(1, 151)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    # Last file first, so that what is read before its turn has to be kept.
    ranges = tuple(FileRange(file=name, start=0, stop=len(name)) for name in reversed(names))
    digest = assemble.assembly_sha256(
        Assembly(header=b"head", ranges=ranges), lambda place: Counted(tmp_path / place.file)
    )
    assert digest == hashlib.sha256(b"head" + "".join(reversed(names)).encode()).hexdigest()
    assert num_open == 0


def in_layer_order(path: Path) -> None:
    """Write a weight file again with its tensors by name, so that those of a layer are side by side."""
    header = read_header(path)
    data = path.read_bytes()
    names = sorted(header.tensors)
    tensors = [header.tensors[name] for name in names]
    head = encode_header((name, header.tensors[name].spec) for name in names)
    path.write_bytes(head + b"".join(data[tensor.start : tensor.stop] for tensor in tensors))


# The network


def test_cut_connection_is_resumed(fetcher: Fetcher, referring: Referring, net: faulty.Network, copied) -> None:
    """A connection that breaks goes on at the byte where it broke."""
    net.forget()
    net.when(FIRST, faulty.cut(0.5), times=3)
    assert same_weights(fetcher.fetch(referring.shard()), copied(0))
    size_bytes = sum(path.stat().st_size for path in copied(0).glob("*.safetensors"))
    assert net.fetched(WEIGHTS) <= 1.01 * size_bytes


def test_retry_after_is_honoured(
    fetcher: Fetcher, referring: Referring, net: faulty.Network, waited: list[float], said: list[str], copied
) -> None:
    """A source that limits the rate of requests is asked again when it says, and the wait is told."""
    net.when(FIRST, faulty.status(429, Retry_After="17"))
    assert same_weights(fetcher.fetch(referring.shard()), copied(0))
    assert [17 <= wait < 18.1 for wait in waited] == [True]
    assert referring.source in said[0]


def test_ignored_range_is_read_from_the_start(
    fetcher: Fetcher, referring: Referring, net: faulty.Network, copied
) -> None:
    """200 instead of 206 brings the whole file, of which the range is taken."""
    net.when(FIRST, ignore_range=True, times=2)
    assert same_weights(fetcher.fetch(referring.shard()), copied(0))


def test_wrong_content_range_is_asked_again(
    fetcher: Fetcher, referring: Referring, net: faulty.Network, copied, waited: list[float]
) -> None:
    """An answer that announces other bytes than those requested is not read."""

    def elsewhere(answer: faulty.Answer) -> None:
        answer.headers["Content-Range"] = "bytes 0-9/100"

    net.when(FIRST, elsewhere, times=2)
    assert same_weights(fetcher.fetch(referring.shard()), copied(0))
    assert len(waited) == 2


def test_flipped_bit_is_fetched_again(
    fetcher: Fetcher, referring: Referring, net: faulty.Network, said: list[str], copied
) -> None:
    """Other bytes of the right size are thrown away and fetched once more."""
    net.when(FIRST, faulty.flip)
    assert same_weights(fetcher.fetch(referring.shard()), copied(0))
    assert [text for text in said if "sha256" in text and referring.source in text]


def test_flipped_bits_are_never_loaded(fetcher: Fetcher, referring: Referring, net: faulty.Network) -> None:
    """A source whose bytes stay different is named, and no file of such bytes is in the cache."""
    net.when(FIRST, faulty.flip, times=1000)
    with pytest.raises(DigestMismatch, match=f"assembled from {referring.source}") as caught:
        fetcher.fetch(referring.shard())
    assert "is corrupt" in caught.value.what
    for path in fetcher.cache.blobs.iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    at = referring.published.shards[0]
    assert fetcher.cache.snapshot(at.repo, at.commit) is None


@pytest.mark.parametrize("num_before", [0, 4], ids=["at once", "in the middle"])
def test_gated_source_is_named(
    fetcher: Fetcher, referring: Referring, net: faulty.Network, num_before: int, copied
) -> None:
    """The error says whom to ask for access; with access, the next run goes on."""
    net.when(f"/{referring.source}/resolve/", times=num_before)
    net.when(f"/{referring.source}/resolve/", faulty.status(403, X_Error_Code="GatedRepo"), times=1000)
    with pytest.raises(AccessError, match=f"{referring.source} is gated") as caught:
        fetcher.fetch(referring.shard())
    assert f"/{referring.source}," in caught.value.hint
    net.rules.clear()
    assert same_weights(fetcher.fetch(referring.shard()), copied(0))


def test_source_that_is_gone_is_named(fetcher: Fetcher, fresh: Referring, api: HfApi) -> None:
    """Without the model, a shard that refers to it cannot be had."""
    api.delete_repo(fresh.source)
    with pytest.raises(NotFound, match=f"The repo {fresh.source} does not exist"):
        fetcher.fetch(fresh.shard())


def test_source_that_was_rewritten_is_named(fetcher: Fetcher, referring: Referring, net: faulty.Network) -> None:
    """A commit that is no longer there is named with its repo."""
    net.when(f"/{referring.source}/tree", faulty.status(404, X_Error_Code="RevisionNotFound"), times=10)
    with pytest.raises(NotFound, match=f"{referring.source} does not have the revision"):
        fetcher.fetch(referring.shard())


def test_source_that_is_cached_is_not_needed(
    fetcher: Fetcher, fresh: Referring, api: HfApi, user: str, net: faulty.Network, tmp_path: Path
) -> None:
    """What another cut has brought is not fetched again, and the source may be gone by then."""
    fetcher.fetch(fresh.shard())
    at = push(api, user, fresh.source, [2], tmp_path, name="other").shards[0]
    api.delete_repo(fresh.source)
    net.forget()
    folder = fetcher.fetch(Reference(repo=at.repo, revision=at.commit))
    assert len(list(folder.glob("layer-*.safetensors"))) == 2
    assert net.fetched(WEIGHTS) == 0


# Documents that were changed


def swapped(ranges: dict[str, Any]) -> None:
    """Two tensors of one size take each other's place."""
    layer = next(file for file in ranges["files"] if file["name"].startswith("layer"))
    sizes = [part["stop"] - part["start"] for part in layer["ranges"]]
    one, other = next((i, j) for i in range(len(sizes)) for j in range(i) if sizes[i] == sizes[j])
    parts = layer["ranges"]
    parts[one], parts[other] = parts[other], parts[one]


def beyond(ranges: dict[str, Any]) -> None:
    """A range ends after its file."""
    part = ranges["files"][0]["ranges"][0]
    part["start"], part["stop"] = part["start"] + (1 << 30), part["stop"] + (1 << 30)


def other_file(ranges: dict[str, Any]) -> None:
    """A range is in a file that the source lacks."""
    ranges["files"][0]["ranges"][0]["file"] = "model-00009-of-00002.safetensors"


def other_source(ranges: dict[str, Any]) -> None:
    """Another place gives the bytes."""
    ranges["source"]["repo"] = "mallory/model"


def other_stage(ranges: dict[str, Any]) -> None:
    """The ranges are another stage's."""
    ranges["stage_digest"] = "0" * 64


def fewer(ranges: dict[str, Any]) -> None:
    """A weight file is neither in the repo nor in the document."""
    del ranges["files"][0]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (swapped, DigestMismatch, "assembled from"),
        (beyond, FormatError, "does not have the bytes"),
        (other_file, FormatError, "no such file"),
        (other_source, DigestMismatch, "another source"),
        (other_stage, DigestMismatch, "another stage"),
        (fewer, NotFound, "does not contain"),
    ],
)
def test_wrong_ranges_are_refused(
    fetcher: Fetcher,
    fresh: Referring,
    api: HfApi,
    change: Callable[[dict[str, Any]], None],
    error: type[ShardhubError],
    text: str,
) -> None:
    """A document of ranges that does not lead to the stage's bytes costs time at most."""
    repo = fresh.published.shards[0].repo
    ranges = json.loads(document(api, repo, RANGES_FILE))
    change(ranges)
    commit = api.upload_file(path_or_fileobj=canonical(ranges), path_in_repo=RANGES_FILE, repo_id=repo).oid
    with pytest.raises(error, match=text):
        fetcher.fetch(Reference(repo=repo, revision=commit))
    assert fetcher.cache.snapshot(repo, commit) is None


# Copies and references


def test_copies_get_references_and_both_serve(
    api: HfApi, user: str, model: Path, tmp_path: Path, fetcher: Fetcher, net: faulty.Network, said: list[str], copied
) -> None:
    """A copied pipeline published again by reference keeps its weights; a node takes whichever place it reaches."""
    repo = upload_model(api, user, model)
    first = push(api, user, repo, [3], tmp_path, by_reference=False)
    both = push(api, user, repo, [3], tmp_path)
    assert [at.action for at in (*both.shards, both.pipeline)] == [Action.UPDATE] * 3
    assert both.pipeline_id == first.pipeline_id
    assert (both.uploaded_bytes, both.given_bytes) == (0, 0)
    at = both.shards[0]
    files = set(api.list_repo_files(at.repo))
    assert set(json.loads(document(api, at.repo, INDEX_FILE))["weight_map"].values()) <= files
    layer = f"/{at.repo}/resolve/{at.commit}/layer-00001.safetensors"
    net.when(layer, faulty.status(403), times=10)
    folder = fetcher.fetch(Reference(repo=at.repo, revision=at.commit))
    assert {file.sha256 for file in read_shard(folder).stage.weight_files} == {
        path.resolve().name for path in folder.glob("*.safetensors")
    }
    assert [text for text in said if f"Trying layer-00001.safetensors (assembled from {repo})" in text]
    assert net.fetched(FIRST) > 0


@pytest.mark.usefixtures("short_periods")
def test_copy_that_drips_is_passed_over(
    api: HfApi,
    user: str,
    model: Path,
    tmp_path: Path,
    fetcher: Fetcher,
    reader: HfApi,
    net: faulty.Network,
    said: list[str],
    patience: Patience,
) -> None:
    """A weight file of which only a byte comes now and then is assembled from the source."""
    repo = upload_model(api, user, model)
    push(api, user, repo, [3], tmp_path, by_reference=False)
    at = push(api, user, repo, [3], tmp_path).shards[0]
    net.when("layer-00001", faulty.drip(0), times=10)
    impatient = Fetcher(lambda: reader, fetcher.cache, patience=replace(patience, num_tries=2))
    assert impatient.fetch(Reference(repo=at.repo, revision=at.commit))
    assert f"Trying layer-00001.safetensors (assembled from {repo})" in said[-1]


def test_copy_that_differs_is_passed_over(
    api: HfApi, user: str, model: Path, tmp_path: Path, fetcher: Fetcher, said: list[str]
) -> None:
    """A weight file that is not the stage's is named in a warning, and assembled from the source."""
    repo = upload_model(api, user, model)
    push(api, user, repo, [3], tmp_path, by_reference=False)
    at = push(api, user, repo, [3], tmp_path).shards[0]
    name = "layer-00001.safetensors"
    commit = api.upload_file(path_or_fileobj=b"other", path_in_repo=name, repo_id=at.repo).oid
    shard = read_shard(fetcher.fetch(Reference(repo=at.repo, revision=commit)))
    assert {file.sha256 for file in shard.stage.weight_files} == {
        path.resolve().name for path in shard.folder.glob(f"*{WEIGHTS}")
    }
    assert said == [
        f"warning: {at.repo}/{name} differs from the file that stage.json names. It is taken from elsewhere."
    ]


def test_error_names_all_places(
    api: HfApi, user: str, model: Path, tmp_path: Path, fetcher: Fetcher, net: faulty.Network
) -> None:
    """Where neither the repo nor the source gives a file, both are in the message."""
    repo = upload_model(api, user, model)
    push(api, user, repo, [3], tmp_path, by_reference=False)
    at = push(api, user, repo, [3], tmp_path).shards[0]
    net.when("layer-00001", faulty.status(403), times=10)
    api.delete_repo(repo)
    with pytest.raises(NotFound, match=repo) as caught:
        fetcher.fetch(Reference(repo=at.repo, revision=at.commit))
    assert f"reading {at.repo}/layer-00001.safetensors" in caught.value.why


def test_references_become_copies(
    api: HfApi, user: str, model: Path, tmp_path: Path, fetcher: Fetcher, net: faulty.Network
) -> None:
    """Published again without the option, the weights are uploaded, and readers of version 1 can use the pipeline."""
    repo = upload_model(api, user, model)
    referred = push(api, user, repo, [3], tmp_path)
    made = push(api, user, repo, [3], tmp_path, by_reference=False)
    assert made.pipeline_id == referred.pipeline_id
    assert made.uploaded_bytes > 0
    assert json.loads(document(api, made.pipeline.repo, MANIFEST_FILE))["format_version"] == 1
    at = made.shards[0]
    files = set(api.list_repo_files(at.repo))
    assert RANGES_FILE not in files
    assert set(json.loads(document(api, at.repo, INDEX_FILE))["weight_map"].values()) <= files
    api.delete_repo(repo)
    fetcher.fetch(Reference(repo=at.repo, revision=at.commit))


def test_new_commit_of_the_source_takes_old_copies_away(
    api: HfApi, user: str, model: Path, tmp_path: Path, fetcher: Fetcher
) -> None:
    """Weight files of an earlier commit do not stay under the names of those that are referred to now."""
    repo = upload_model(api, user, model)
    push(api, user, repo, [3], tmp_path / "a", by_reference=False)
    changed = tmp_path / "changed"
    write_checkpoint(changed, 6, rows=ROWS, tied=False, seed=1)
    upload_model(api, user, changed)
    at = push(api, user, repo, [3], tmp_path / "b").shards[0]
    assert not [name for name in api.list_repo_files(at.repo) if name.endswith(WEIGHTS)]
    fetcher.fetch(Reference(repo=at.repo, revision=at.commit))


@dataclass(frozen=True)
class Negated:
    """Computes a norm of layer 1 from the source's: a computed tensor as those of the model layer."""

    name: ClassVar[str] = "model.layers.1.input_layernorm.weight"
    recipe: str = "negated"

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        return {self.name: TensorSpec(dtype="F32", shape=(HIDDEN,))}

    def read(self, checkpoint: Checkpoint, names: Sequence[str]) -> Iterator[memoryview]:
        for name in names:
            tensor = checkpoint.tensors[name]
            data = bytearray(tensor.stop - tensor.start)
            with closing(checkpoint.open_file(tensor.file)) as source:
                source.read_into(tensor.start, memoryview(data))
            yield memoryview(np.negative(np.frombuffer(data, np.float32)).tobytes())


COMPUTED = "computed-layer-00001.safetensors"


@pytest.fixture
def negated(model: Path) -> ModelContents:
    """What the model has if a norm of layer 1 has to be computed."""
    contents, computed = contents_of(open_checkpoint(model)), Negated()
    stored = {final: name for final, name in contents.stored_names.items() if final != computed.name}
    return replace(contents, stored_names=stored, computed=computed)


def test_only_computed_tensors_are_uploaded(
    api: HfApi, user: str, model: Path, negated: ModelContents, tmp_path: Path, fetcher: Fetcher, net: faulty.Network
) -> None:
    """Of a weight file with a computed tensor, that tensor alone is in the shard's repo; the identity is a copy's."""
    repo = upload_model(api, user, model)
    copied = push(api, user, repo, [3], tmp_path / "copy", contents=negated, by_reference=False, name="copy")
    made = push(api, user, repo, [3], tmp_path, contents=negated)
    assert (made.pipeline_id, made.stage_digests) == (copied.pipeline_id, copied.stage_digests)
    at = made.shards[0]
    files = api.list_repo_files(at.repo)
    assert [name for name in files if name.endswith(WEIGHTS)] == [COMPUTED]
    assert INDEX_FILE not in files
    computed = load_file(api.hf_hub_download(at.repo, COMPUTED))
    assert set(computed) == {Negated.name}
    assert made.uploaded_bytes == Path(api.hf_hub_download(at.repo, COMPUTED)).stat().st_size
    net.forget()
    folder = fetcher.fetch(Reference(repo=at.repo, revision=at.commit))
    size_bytes = sum(path.stat().st_size for path in folder.glob(f"*{WEIGHTS}"))
    assert net.fetched(WEIGHTS) <= 1.01 * size_bytes
    layer = load_file(folder / "layer-00001.safetensors")
    source = {name: tensor for path in model.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert np.array_equal(layer[Negated.name], -source[Negated.name])
    assert "Its weight files are published by reference" in document(api, at.repo, CARD_FILE).decode()
    again = push(api, user, repo, [3], tmp_path / "elsewhere", contents=negated)  # with another journal
    assert [one.action for one in (*again.shards, again.pipeline)] == [Action.KEEP] * 3


def test_computed_tensors_that_are_gone_are_uploaded_again(
    api: HfApi, user: str, model: Path, negated: ModelContents, tmp_path: Path, fetcher: Fetcher
) -> None:
    """A repo that lost its computed tensors is refused by name, and the next push completes it."""
    repo = upload_model(api, user, model)
    at = push(api, user, repo, [3], tmp_path, contents=negated).shards[0]
    commit = api.delete_file(COMPUTED, at.repo).oid
    with pytest.raises(FormatError, match=f"The shard {at.repo} does not have the bytes of layer-00001"):
        fetcher.fetch(Reference(repo=at.repo, revision=commit))
    again = push(api, user, repo, [3], tmp_path / "elsewhere", contents=negated).shards[0]
    assert again.action is Action.UPDATE
    fetcher.fetch(Reference(repo=again.repo, revision=again.commit))


def test_computed_tensors_become_part_of_copies(
    api: HfApi, user: str, model: Path, negated: ModelContents, tmp_path: Path
) -> None:
    """Published again without the option, the repo holds whole weight files only."""
    repo = upload_model(api, user, model)
    push(api, user, repo, [3], tmp_path, contents=negated)
    at = push(api, user, repo, [3], tmp_path, contents=negated, by_reference=False).shards[0]
    files = set(api.list_repo_files(at.repo))
    assert COMPUTED not in files
    assert set(json.loads(document(api, at.repo, INDEX_FILE))["weight_map"].values()) <= files


# Processes


def test_kill_in_the_middle_of_assembling_is_finished_by_the_next_run(
    referring: Referring, net: faulty.Network, token: str, fetcher: Fetcher, copied
) -> None:
    """After SIGKILL nothing looks whole; the next run brings the right bytes and fetches no finished file again."""
    net.when(FIRST, times=3)
    net.when(FIRST, faulty.stall(0.5), times=10)
    arguments = command(FETCH, net.endpoint, token, referring.shard(), fetcher.cache.root)
    child = subprocess.Popen(arguments)
    wait_until(lambda: child.poll() is not None or num_whole(fetcher.cache) >= 1, 120)
    assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    at = referring.published.shards[0]
    assert fetcher.cache.snapshot(at.repo, at.commit) is None
    net.rules.clear()
    folder = fetcher.fetch(referring.shard())
    assert same_weights(folder, copied(0))
    assert not list(fetcher.cache.root.glob("partials/*"))


def num_whole(cache: Cache) -> int:
    """Number of weight files in the cache."""
    return sum(path.stat().st_size > ROWS * 4 for path in cache.root.glob("blobs/*"))


def test_two_processes_assemble_a_file_once(
    referring: Referring, net: faulty.Network, token: str, tmp_path: Path, copied
) -> None:
    """What one of them assembles, the other waits for or finds."""
    arguments = command(FETCH, net.endpoint, token, referring.shard(), tmp_path / "c")
    net.forget()
    children = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [child.communicate(timeout=200)[0] for child in children]
    for text in outputs:
        assert same_weights(Path(text.splitlines()[-1]), copied(0)), text
    size_bytes = sum(path.stat().st_size for path in copied(0).glob("*.safetensors"))
    assert net.fetched(WEIGHTS) <= 1.01 * size_bytes


def test_disk_that_fills_up(referring: Referring, net: faulty.Network, token: str, tmp_path: Path) -> None:
    """A write the system refuses is told with what is free, and takes its partial file away."""
    program = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n" + FETCH
    )
    done = run_fetch(program, net.endpoint, token, referring.shard(), tmp_path / "c")
    assert "DiskFull" in done.stdout, done.stderr
