"""A plain model cut for a cluster: every machine reads its own layers, and together they are the published pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from shardhub.checkpoint.quantisation import Quantisation
from shardhub.hub.cache import Cache
from shardhub.hub.client import hub_api
from shardhub.hub.traffic import Place, Traffic
from shardhub.localhub.server import running_hub
from shardhub.naming import STAGE_FILE
from shardhub.shard import Pipeline, read_manifest, read_pipeline
from shardhub.splitting.file_order import FileOrder
from shardhub.usecases.cluster_cut import AssembledPipeline, Candidate, ClusterCut, ClusterCutSettings, read_files
from shardhub.usecases.cut import Cut
from shardhub.usecases.places import Places
from shardhub.usecases.publish import PublishSettings, publish

MACHINES = {0: "a", 1: "b", 2: "c"}
CUTS = (2, 4)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HfApi]:
    """A Hub of the module's own, which the environment names."""
    with (
        running_hub(tmp_path_factory.mktemp("hub") / "hub") as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("HF_ENDPOINT", running.endpoint)
        patch.setenv("HF_TOKEN", token := running.token("ann"))
        patch.setenv("SHARDHUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield hub_api(running.endpoint, token)


@pytest.fixture(scope="module")
def made(model: str) -> ClusterCut:
    """It cut in three."""
    return Candidate(model, ClusterCutSettings()).cut(CUTS)


def read_all(made: ClusterCut, root: Path, traffic: Traffic | None = None) -> dict[str, str]:
    """Have each machine read its files into a cache of its own; the sha256 of all by key."""
    digests: dict[str, str] = {}
    for machine, order in made.orders(MACHINES).items():
        digests |= read_files(order, cache=Cache(root / machine), traffic=traffic).digests
    return digests


def written(assembled: AssembledPipeline, root: Path) -> Pipeline:
    """The pipeline's folder, as a machine keeps it."""
    folder = root / "manifests" / assembled.manifest.pipeline_id
    folder.mkdir(parents=True)
    for name, data in assembled.documents.items():
        (folder / name).write_bytes(data)
    return read_pipeline(folder)


def test_machines_make_the_pipeline_that_a_push_by_reference_makes(
    made: ClusterCut, model: str, tmp_path: Path
) -> None:
    """Stage digests and the pipeline's id do not depend on who read the layers, or on where they are kept."""
    published = publish(model, Cut(cuts=CUTS), PublishSettings(by_reference=True, assume_yes=True, name="tiny"))
    assembled = made.assemble(read_all(made, tmp_path))
    remote = read_manifest(Places().pipeline_folder(published.pipeline))
    assert assembled.manifest.pipeline_id == published.pipeline_id
    assert [stage.digest for stage in assembled.manifest.stages] == [stage.digest for stage in remote.stages]
    assert written(assembled, tmp_path).manifest == assembled.manifest


def test_every_tensor_is_read_once_although_two_stages_need_the_embedding(made: ClusterCut, tmp_path: Path) -> None:
    """A file that several stages have is ordered from one machine only."""
    traffic = Traffic()
    read_all(made, tmp_path, traffic)
    tensors = made.job.checkpoint.size_bytes
    assert tensors <= traffic.fetched[Place.SOURCE] <= 1.05 * tensors
    assert made.job.shards[2].size_bytes > sum(file.assembly.size_bytes for file in made.orders(MACHINES)["c"].files)


def test_orders_survive_being_written_down(made: ClusterCut) -> None:
    """An order is a document: what a machine parses is what was ordered."""
    order = made.orders(MACHINES)["b"]
    assert FileOrder.model_validate_json(json.dumps(order.model_dump(mode="json"))) == order


def test_files_that_are_known_are_not_ordered_again(made: ClusterCut, tmp_path: Path) -> None:
    """With the sha256 of all files nothing is left to read."""
    assert made.orders(MACHINES, read_all(made, tmp_path)) == {}


def test_a_second_read_takes_everything_from_the_cache(made: ClusterCut, tmp_path: Path) -> None:
    """What one run has read costs the next one nothing."""
    first = read_all(made, tmp_path)
    traffic = Traffic()
    assert read_all(made, tmp_path, traffic) == first
    assert traffic.fetched[Place.SOURCE] == 0


def test_a_read_that_was_killed_is_continued(made: ClusterCut, tmp_path: Path) -> None:
    """The bytes of half a file are kept, and only the rest comes from the source."""
    order = made.orders(MACHINES)["b"]
    cache = Cache(tmp_path / "b")
    whole = read_files(order, cache=Cache(tmp_path / "other"))
    cache.prepare()
    file = order.files[0]
    half = Cache(tmp_path / "other").blob(whole.digests[file.key]).read_bytes()[: file.assembly.size_bytes // 2]
    cache.partial(file.key, is_locked=True).write_bytes(half)
    traffic = Traffic()
    assert read_files(order, cache=cache, traffic=traffic) == whole
    total = sum(each.assembly.size_bytes for each in order.files)
    assert traffic.fetched[Place.SOURCE] == total - len(half)


def test_a_machine_serves_its_stage_from_documents_and_cache(made: ClusterCut, tmp_path: Path) -> None:
    """With the documents, a machine that has read its files takes only the others from the source."""
    digests = read_all(made, tmp_path)
    pipeline = written(made.assemble(digests), tmp_path)
    places = Places(tmp_path / "b")
    shard = places.shard(pipeline, 1)
    assert shard is not None
    assert shard.digest == pipeline.manifest.stages[1].digest
    assert {path.name for path in shard.folder.iterdir()} >= {STAGE_FILE, *(f.name for f in shard.stage.weight_files)}
    other = places.shard(pipeline, 2)
    assert other is not None
    assert all((other.folder / file.name).is_file() for file in other.stage.weight_files)


def test_quantised_layers_are_made_by_one_machine(model: str, tmp_path: Path) -> None:
    """What no source has is computed once, and the documents name no source for it."""
    settings = ClusterCutSettings(quantisation=Quantisation(bits=4, group_size=32))
    made = Candidate(model, settings).cut(CUTS)
    assert made.orders(MACHINES) == {}
    cache = Cache(tmp_path / "a")
    digests = made.make(cache).digests
    assert {file.key for file in made.made} == set(digests)
    pipeline = written(made.assemble(digests), tmp_path)
    shard = Places(tmp_path / "a").shard(pipeline, 2)
    assert shard is not None
    assert shard.stage.source.quantized is not None
