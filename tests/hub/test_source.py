"""A model on the Hub as a checkpoint: read by ranges, pinned to a commit, right whatever the network does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from huggingface_hub import HfApi

from shardhub.checkpoint.checkpoint import Checkpoint, open_checkpoint
from shardhub.checkpoint.quantisation import Quantisation
from shardhub.errors import HubUnreachable, NotFound, ShardhubError, UnsupportedModel, UsageError, WeightFileError
from shardhub.hub.cache import Cache
from shardhub.hub.ranges import Patience
from shardhub.hub.reference import Reference
from shardhub.hub.source import RemoteModel, open_remote_checkpoint
from shardhub.model.dissection import Dissection
from shardhub.model.quantised import quantise, read_arrays
from shardhub.splitting.split import ModelContents, SplitResult, StageContents, split
from tests import weight_folders
from tests.hub import faulty
from tests.hub.published import OVER_LFS
from tests.weight_folders import ODD

pytestmark = OVER_LFS
WEIGHTS = "model.safetensors"


@pytest.fixture
def repo(api: HfApi, user: str, whole_model: Path) -> str:
    """The model's repo, with unrelated files in it."""
    name = api.create_repo(f"{user}/model").repo_id
    api.upload_folder(repo_id=name, folder_path=whole_model)
    for extra in ("modeling_x.py", "pytorch_model.bin", "LICENSE"):
        api.upload_file(path_or_fileobj=b"text", path_in_repo=extra, repo_id=name)
    return name


@pytest.fixture
def opened(repo: str, reader: HfApi, patience: Patience, tmp_path: Path, net: faulty.Network) -> RemoteModel:
    """The repo, opened as a checkpoint."""
    return open_remote_checkpoint(reader, Reference(repo=repo), Cache(tmp_path / "cache"), patience=patience)


@pytest.fixture(scope="module")
def dissection(whole_model: Path) -> tuple[ModelContents, tuple[StageContents, ...]]:
    """The parts of the model and its two stages; the same wherever the model is stored."""
    checkpoint = open_checkpoint(whole_model)
    dissected = Dissection(checkpoint.config, {key: stored.spec for key, stored in checkpoint.tensors.items()})
    return dissected.model(), tuple(dissected.stages([(0, 3), (3, 6)]))


@pytest.fixture
def cut_remote(dissection, tmp_path: Path) -> Callable[[RemoteModel], SplitResult]:
    """Cuts a model on the Hub in two."""
    contents, stages = dissection
    return lambda model: split(model.checkpoint, contents, stages, tmp_path / "out", name="m", source=model.source)


def same_as_local(result: SplitResult, original: Path) -> bool:
    return all(
        (shard.folder / path.name).read_bytes() == path.read_bytes()
        for shard in result.shards
        for path in (original.parent / f"m-shard-{shard.index}").glob("*.safetensors")
    )


def test_headers_are_those_of_the_folder(
    opened: RemoteModel, whole_model: Path, net: faulty.Network, api: HfApi, repo: str
) -> None:
    """Tensors, configuration, repo and commit are known; only the header of the weight file was sent."""
    local = open_checkpoint(whole_model)
    assert dict(opened.checkpoint.tensors) == dict(local.tensors)
    assert opened.checkpoint.config == local.config
    assert (opened.source.repo, opened.source.commit) == (repo, api.repo_info(repo).sha)
    first = min(tensor.start for tensor in local.tensors.values())
    assert net.fetched(WEIGHTS) == first


def test_only_small_known_files_are_fetched(opened: RemoteModel, net: faulty.Network) -> None:
    """Configuration, tokenizer and licence are fetched; code and pickles are not."""
    names = {path.name for path in opened.checkpoint.folder.iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "LICENSE"} <= names
    assert not names & {"modeling_x.py", "pytorch_model.bin", WEIGHTS}
    assert not any(part in path for _, path, _ in net.requests for part in ("modeling_x", "pytorch_model"))


def test_split_is_that_of_the_folder(opened: RemoteModel, cut_in_two, net: faulty.Network, cut_remote) -> None:
    """The shards equal those cut from the folder byte for byte; every byte is sent once."""
    net.forget()
    result = cut_remote(opened)
    assert same_as_local(result, cut_in_two.folder)
    assert net.fetched(WEIGHTS) == opened.checkpoint.size_bytes
    assert opened.source.commit in (result.shards[0].folder / "stage.json").read_text()


@pytest.mark.parametrize(
    ("fault", "stall_timeout_s"),
    [
        (faulty.cut(0.1), 60),
        (faulty.cut(0.5), 60),
        (faulty.cut(0.99), 60),
        (faulty.stall(0.5), 1),
        (faulty.status(429), 60),
        (faulty.status(503), 60),
    ],
    ids=["cut10", "cut50", "cut99", "stall", "429", "503"],
)
def test_split_over_a_bad_line(
    opened: RemoteModel, cut_in_two, net: faulty.Network, fault: faulty.Fault, cut_remote
) -> None:
    """Broken connections, stalls and refusals change no byte."""
    net.when(WEIGHTS, fault, times=2)
    assert same_as_local(cut_remote(opened), cut_in_two.folder)


def test_split_from_a_server_without_ranges(opened: RemoteModel, cut_in_two, net: faulty.Network, cut_remote) -> None:
    """A server that ignores ranges is read from the file's start each time."""
    net.when(WEIGHTS, ignore_range=True, times=1000)
    assert same_as_local(cut_remote(opened), cut_in_two.folder)


def test_quantised_tensors_are_those_of_the_folder(opened: RemoteModel, whole_model: Path, net: faulty.Network) -> None:
    """A model that is quantised while it is read is sent once, tensors that follow each other in one request."""
    quantisation = Quantisation(group_size=32)
    expected = read_arrays(local := quantise(open_checkpoint(whole_model), quantisation), local.tensors)
    net.forget()
    made = quantise(opened.checkpoint, quantisation)
    assert net.fetched(WEIGHTS) == 0
    arrays = read_arrays(made, made.tensors)
    assert net.fetched(WEIGHTS) == opened.checkpoint.size_bytes
    assert len([path for _, path, _ in net.requests if path.endswith(WEIGHTS)]) < len(opened.checkpoint.tensors)
    net.when(WEIGHTS, faulty.cut(0.5), times=2)
    again = read_arrays(made, made.tensors)
    for name, array in expected.items():
        assert mx.array_equal(arrays[name], array).item(), name
        assert mx.array_equal(again[name], array).item(), name


def test_wrong_range_is_not_taken(opened: RemoteModel, cut_in_two, net: faulty.Network, cut_remote) -> None:
    """A response with another range is recognised by its Content-Range."""

    def elsewhere(answer: faulty.Answer) -> None:
        answer.headers = {key: value for key, value in answer.headers.items() if key.lower() != "content-range"}
        answer.headers["Content-Range"] = f"bytes 0-{len(answer.body) - 1}/99999999"

    net.when(WEIGHTS, elsewhere, times=3)
    assert same_as_local(cut_remote(opened), cut_in_two.folder)


def test_split_goes_on_where_the_network_ended(
    opened: RemoteModel, cut_in_two, net: faulty.Network, tmp_path: Path, cut_remote
) -> None:
    """Bytes that an earlier run copied are not sent again, though the Hub's files have no times."""
    seen = 0

    def half(answer: faulty.Answer) -> None:
        nonlocal seen
        seen += 1
        if seen > 40:
            faulty.status(503)(answer)

    net.when(WEIGHTS, half, times=1000)
    net.forget()
    with pytest.raises(HubUnreachable):
        cut_remote(opened)
    assert not (tmp_path / "out" / "m-pipeline").exists()
    net.rules.clear()
    assert same_as_local(cut_remote(opened), cut_in_two.folder)
    largest = max(path.stat().st_size for path in cut_in_two.folder.parent.rglob("*.safetensors"))
    assert net.fetched(WEIGHTS) <= opened.checkpoint.size_bytes + 2 * largest


def test_commit_is_pinned(opened: RemoteModel, api: HfApi, repo: str, cut_in_two, cut_remote) -> None:
    """Weights that are replaced after the headers were read are not used."""
    api.upload_file(path_or_fileobj=b"\0" * 100_000, path_in_repo=WEIGHTS, repo_id=repo)
    assert same_as_local(cut_remote(opened), cut_in_two.folder)


@pytest.mark.parametrize("length", [2**63, 40 << 20, 50_000])
def test_hostile_header_length(
    api: HfApi, user: str, reader: HfApi, whole_model: Path, tmp_path: Path, net: faulty.Network, length: int
) -> None:
    """A header length beyond the limit or the file's size is refused after 8 bytes."""
    repo = api.create_repo(f"{user}/bad").repo_id
    api.upload_file(path_or_fileobj=whole_model / "config.json", path_in_repo="config.json", repo_id=repo)
    api.upload_file(path_or_fileobj=length.to_bytes(8, "little") + b"{" * 20_000, path_in_repo=WEIGHTS, repo_id=repo)
    with pytest.raises(WeightFileError, match="not a valid safetensors file"):
        open_remote_checkpoint(reader, Reference(repo=repo), Cache(tmp_path / "c"))
    assert net.fetched(WEIGHTS) == 8


def test_repos_without_a_model_are_refused(api: HfApi, user: str, published, reader: HfApi, tmp_path: Path) -> None:
    """A shard, a repo without weights and a missing repo have different messages."""
    cache = Cache(tmp_path / "c")
    with pytest.raises(UsageError, match="is a shard, not a model"):
        open_remote_checkpoint(reader, Reference(repo=published.shards[0]), cache)
    repo = api.create_repo(f"{user}/old").repo_id
    api.upload_file(path_or_fileobj=b'{"num_hidden_layers": 1}', path_in_repo="config.json", repo_id=repo)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="pytorch_model.bin", repo_id=repo)
    with pytest.raises(UnsupportedModel, match="no safetensors"):
        open_remote_checkpoint(reader, Reference(repo=repo), cache)
    with pytest.raises(NotFound):
        open_remote_checkpoint(reader, Reference(repo=f"{user}/none"), cache)


@pytest.mark.parametrize("name", ODD)
def test_odd_weight_files_are_read_as_in_a_folder(
    name: str, api: HfApi, user: str, patience: Patience, tmp_path: Path
) -> None:
    """A repo whose index and weight files disagree is treated as such a folder is."""
    odd = ODD[name]
    folder = weight_folders.proper(tmp_path / "model")
    odd.change(folder)
    repo = api.create_repo(f"{user}/{name.replace('_', '-')}").repo_id
    api.upload_folder(repo_id=repo, folder_path=folder)

    def read() -> Checkpoint:
        return open_remote_checkpoint(
            api, Reference(repo=repo), Cache(tmp_path / "cache"), patience=patience
        ).checkpoint

    if odd.refusal:
        with pytest.raises(ShardhubError, match=odd.refusal):
            read()
        return
    checkpoint, local = read(), open_checkpoint(folder)
    assert dict(checkpoint.tensors) == dict(local.tensors)
    assert checkpoint.notes == local.notes


def test_ranges_are_read_over_one_connection(opened: RemoteModel, net: faulty.Network) -> None:
    """A body that was read to its end leaves its connection to the next request."""
    with opened.checkpoint.open_file(WEIGHTS) as file:
        net.forget()
        for start in range(0, 4000, 400):
            file.read_ahead(start, start + 100)
            file.read_into(start, memoryview(bytearray(100)))
    assert len(net.requests) == 10
    assert net.num_connections <= 1
