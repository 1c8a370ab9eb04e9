"""Publishing by reference that is killed, and sources that change under the nodes that fetch from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from shardhub.errors import DigestMismatch, FormatError, HubUnreachable, NotFound, ShardhubError
from shardhub.hub.client import hub_api
from shardhub.hub.fetch import Fetcher
from shardhub.hub.reference import Reference
from shardhub.localhub.server import RunningHub
from shardhub.manifest import Manifest, decode_identified, encode
from shardhub.naming import MANIFEST_FILE
from shardhub.usecases.places import Places
from tests.checkpoints import write_checkpoint
from tests.hub import faulty
from tests.hub.pushing import OVER_LFS, Wire, pushing_hub
from tests.hub.referring import Referring, push, refer, same_weights

pytestmark = OVER_LFS

ROWS = 4096
FIRST = "model-00001-of-00002.safetensors"
WEIGHTS = ".safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two files, in each of which the tensors of all layers alternate."""
    folder = tmp_path_factory.mktemp("model") / "model"
    write_checkpoint(folder, 6, rows=ROWS, tied=False)
    return folder


# Publishing


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningHub, Wire]]:
    with pushing_hub(tmp_path_factory.mktemp("pushed")) as served:
        yield served


@pytest.fixture(scope="module")
def whole(served: tuple[RunningHub, Wire], model: Path, tmp_path_factory: pytest.TempPathFactory) -> Referring:
    """The model on that Hub, published by a run that nobody disturbs."""
    hub, _ = served
    return refer(hub_api(hub.endpoint, hub.token("ann")), "ann", model, [3], tmp_path_factory.mktemp("whole"))


PUSH = """
import sys
from pathlib import Path
from huggingface_hub import constants
constants.HF_HUB_DISABLE_XET = True
from shardhub.hub.client import hub_api
from tests.hub.referring import push
endpoint, token, user, repo, work = sys.argv[1:]
push(hub_api(endpoint, token), user, repo, [3], Path(work))
"""


@pytest.mark.parametrize(
    ("method", "part", "number"),
    [("GET", FIRST, 6), ("POST", "-shard-0/commit/", 1), ("POST", "-shard-1/commit/", 1), ("POST", "/repos/create", 3)],
    ids=["hashing", "first-shard", "second-shard", "manifest-repo"],
)
def test_killed_push_is_finished_by_the_next_run(
    served: tuple[RunningHub, Wire], whole: Referring, tmp_path: Path, method: str, part: str, number: int
) -> None:
    """After SIGKILL no pipeline is visible; the next run reads no finished file again, and publishes the same."""
    hub, wire = served
    user = f"user-{tmp_path.name.rsplit('_', 1)[-1]}-{number}".replace("_", "-")
    token = hub.hub.token(user, groups=["ann"])
    api = hub_api(hub.endpoint, token)
    wire.kill_at(method, part, number, PUSH, hub.endpoint, token, user, whole.source, str(tmp_path))
    assert not list(api.list_models(author=user, filter="shardhub-pipeline"))
    wire.reset()
    made = push(api, user, whole.source, [3], tmp_path)
    num_read = wire.count("GET", WEIGHTS)
    assert (made.stage_digests, made.pipeline_id) == (whole.published.stage_digests, whole.published.pipeline_id)
    assert made.uploaded_bytes == 0
    assert not list((tmp_path / "push").glob("making-*"))
    wire.reset()
    assert push(api, user, whole.source, [3], tmp_path).pipeline.commit == made.pipeline.commit
    num_headers = wire.count("GET", WEIGHTS)
    assert (num_read == num_headers) == (part in ("-shard-1/commit/", "/repos/create"))


# Fetching


@pytest.fixture(scope="module")
def referring(shared_hub: RunningHub, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Referring:
    """Two stages on the Hub behind `net`; nobody changes them."""
    api = hub_api(shared_hub.endpoint, shared_hub.token("ann"))
    return refer(api, "ann", model, [3], tmp_path_factory.mktemp("referring"))


def resized(difference: int) -> faulty.Fault:
    """The source's listing says another size of each weight file."""

    def change(answer: faulty.Answer) -> None:
        entries = json.loads(answer.body)
        for entry in entries:
            if entry["path"].endswith(WEIGHTS):
                entry["size"] += difference
                entry["lfs"]["size"] += difference
        answer.body = json.dumps(entries).encode()

    return change


@pytest.mark.parametrize(
    ("difference", "error", "text"),
    [(-ROWS * 64, FormatError, "does not have the bytes of"), (ROWS * 64, HubUnreachable, "were requested, but")],
    ids=["shorter", "longer"],
)
def test_source_file_that_changed_size_is_not_read(
    fetcher: Fetcher,
    referring: Referring,
    net: faulty.Network,
    difference: int,
    error: type[ShardhubError],
    text: str,
) -> None:
    """Ranges beyond it are refused, and answers from a file of another size are not read; the next run is whole."""
    net.when(f"/{referring.source}/tree", resized(difference), times=10)
    with pytest.raises(error, match=text):
        fetcher.fetch(referring.shard())
    assert net.fetched(WEIGHTS) == 0 or error is HubUnreachable
    assert not [path for path in fetcher.cache.blobs.iterdir() if path.stat().st_size > ROWS * 4]
    net.rules.clear()
    assert same_weights(fetcher.fetch(referring.shard()), referring.copied.shards[0].folder)


def test_renamed_source_is_named(fetcher: Fetcher, api: HfApi, user: str, model: Path, tmp_path: Path) -> None:
    """A source under another name cannot be had, and the error names what the shard asks for."""
    made = refer(api, user, model, [3], tmp_path)
    api.move_repo(made.source, f"{user}/renamed")
    with pytest.raises(NotFound, match=f"The repo {made.source} does not exist"):
        fetcher.fetch(made.shard())


def test_manifest_of_another_source_is_refused(
    api: HfApi, user: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that credits another model than its shards were made from gives no shard."""
    made = refer(api, user, model, [3], tmp_path)
    path = Path(api.hf_hub_download(made.published.pipeline.repo, MANIFEST_FILE))
    manifest = decode_identified(Manifest, path.read_bytes(), where=str(path))
    other = manifest.source.model_copy(update={"repo": "mallory/model"})
    stages = tuple(stage.model_copy(update={"locations": stage.locations[:1]}) for stage in manifest.stages)
    changed = manifest.model_copy(update={"source": other, "stages": stages, "format_version": 1})
    api.upload_file(path_or_fileobj=encode(changed), path_in_repo=MANIFEST_FILE, repo_id=made.published.pipeline.repo)
    monkeypatch.setenv("HF_ENDPOINT", api.endpoint)
    monkeypatch.setenv("HF_TOKEN", str(api.token))
    places = Places(tmp_path / "cache")
    pipeline = places.fetcher.pipeline(Reference(repo=made.published.pipeline.repo))
    with pytest.raises(DigestMismatch, match="names another source than its shards"):
        places.shard(pipeline, 0)
