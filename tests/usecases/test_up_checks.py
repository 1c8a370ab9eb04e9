"""What is checked before a model is brought up: settings, the Hub, and what is up already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shardhub.cli.placing_table import record, render
from shardhub.cli.tables import text_of
from shardhub.errors import AccessError, NodeUnreachable, UsageError
from shardhub.localhub.server import running_hub
from shardhub.manifest import Manifest, Source, StageEntry, encode
from shardhub.naming import MANIFEST_FILE
from shardhub.placing.cluster import Cluster
from shardhub.resident.deployments import HANDED_ON, Assignment, Deployment
from shardhub.resident.hub_access import HubAccess
from shardhub.resident.machine import MachineFacts, MachineState
from shardhub.splitting.file_order import FileOrder
from shardhub.usecases.cluster_cut import Candidate, ClusterCutSettings
from shardhub.usecases.cluster_files import read_on_machines
from shardhub.usecases.cluster_place import ClusterPlace
from shardhub.usecases.cluster_view import ServedPipeline
from shardhub.usecases.placeable import Placeable
from shardhub.usecases.up import UpSettings
from shardhub.usecases.up_checks import check_pushable, hub_warning, replaced_model
from shardhub.usecases.up_plan import PlacingSettings, plan_up
from tests.clusters import GB, machine, uniform
from tests.cut import tiny_model

ID = "a" * 64
PIPELINE = Placeable(
    name="Llama",
    facts=uniform(4, GB),
    context=1000,
    is_quantised=False,
    place="bob/Llama-pipeline@" + "b" * 40,
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Callable[[Path], None]) -> Placeable:
    """A plain model that is called Llama, too."""
    folder = tiny_model(tmp_path_factory.mktemp("model") / "Llama")
    tiny_tokenizer(folder)
    candidate = Candidate(folder, ClusterCutSettings(context=64))
    return replace(PIPELINE, place=None, candidate=candidate)


def up(place: str, name: str = "Llama") -> ServedPipeline:
    """A pipeline that is up."""
    assignments = (Assignment(machine="box", start=0, stop=4),)
    order = Deployment(name=name, counter=1, member="box", pipeline_id=ID, place=place, assignments=assignments)
    return ServedPipeline(deployment=order, nodes=())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: UpSettings(max_sessions=5000), "`max_sessions` is 5000"),
        (lambda: PlacingSettings(sessions=5000), "`sessions` is 5000"),
        (lambda: PlacingSettings(replicas=17), "`replicas` is 17"),
        (lambda: ClusterCutSettings(context=1 << 32), "`context` is"),
        (lambda: ClusterCutSettings(name="my model"), "Write `name` my-model"),
        (
            lambda: UpSettings(max_sessions=4, placing=PlacingSettings(sessions=32)),
            "`max_sessions` is 4, and `sessions` is 32",
        ),
    ],
)
def test_settings_that_no_order_can_have_are_refused_by_name(settings, message: str) -> None:
    """What an order's document refuses is refused before anything is done, in words."""
    with pytest.raises(UsageError) as refused:
        settings()
    assert message in str(refused.value)


@pytest.mark.parametrize(("max_sessions", "sessions", "expected"), [(None, 1, 16), (None, 32, 32), (40, 32, 40)])
def test_nodes_have_room_for_the_sessions_they_are_placed_for(
    max_sessions: int | None, sessions: int, expected: int
) -> None:
    """By default 16, or more if more are to run at once."""
    settings = UpSettings(max_sessions=max_sessions, placing=PlacingSettings(sessions=sessions))
    assert settings.session_limit == expected


def test_a_pipeline_is_not_pushed_again() -> None:
    """That is said before anything is done, without asking a Hub."""
    with pytest.raises(UsageError, match="Llama is a pipeline already"):
        check_pushable(PIPELINE)


def test_a_token_that_cannot_write_is_refused_before_the_order(
    plain: Placeable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub is asked what the token may do."""
    with running_hub(tmp_path / "hub") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", running.token("ann"))
        check_pushable(plain)
        monkeypatch.setenv("HF_TOKEN", running.token("ann", role="read"))
        with pytest.raises(AccessError, match="cannot write"):
            check_pushable(plain)


def test_another_model_of_one_name_is_named(plain: Placeable, tmp_path: Path) -> None:
    """A newer commit of one repo is the same model; another repo is another, and so is a model in a folder."""
    place = ClusterPlace(state=tmp_path)
    assert replaced_model([up("bob/Llama-pipeline@" + "c" * 40)], PIPELINE, place) is None
    assert replaced_model([up("ann/Llama-pipeline", name="other")], PIPELINE, place) is None
    ann = up("ann/Llama-pipeline@" + "c" * 40)
    assert replaced_model([ann], PIPELINE, place) == "ann/Llama-pipeline"
    assert replaced_model([ann], plain, place) == "ann/Llama-pipeline"


def test_the_source_of_a_model_that_was_cut_for_the_cluster_is_named(plain: Placeable, tmp_path: Path) -> None:
    """It is in the manifest that came with the order."""
    place = ClusterPlace(state=tmp_path)
    assert replaced_model([up(HANDED_ON)], plain, place) == "another model"
    folder = place.folder.manifest_folder(ID) / "documents"
    folder.mkdir(parents=True)
    stage = StageEntry(digest="d" * 64, start=0, stop=4, size_bytes=1, locations=())
    source = Source(repo="ann/Llama", commit="e" * 40)
    manifest = Manifest(
        name="Llama", source=source, config_digest="b" * 64, num_layers=4, stages=(stage,), files={}, inexact=None
    )
    (folder / MANIFEST_FILE).write_bytes(encode(manifest))
    assert replaced_model([up(HANDED_ON)], plain, place) == "ann/Llama"


def test_the_table_says_what_is_replaced() -> None:
    """With what to give to keep both; and it has no column of what a machine has to fetch, which nobody knows."""
    plan = plan_up(PIPELINE, Cluster(machines=(machine("a", 20),)), PlacingSettings(), here="a")
    assert record(plan)["replaces"] is None
    assert "replaced" not in text_of(render(plan))
    assert "fetch" not in text_of(render(plan))
    other = replace(plan, replaces="ann/Llama")
    assert record(other)["replaces"] == "ann/Llama"
    assert "Llama is up already, from ann/Llama, and will be replaced; --name NAME keeps both" in text_of(render(other))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_hub_on_loopback_is_warned_of(host: str) -> None:
    """Only where other machines read from it."""
    access = HubAccess(endpoint=f"http://{host}:8090")
    assert "mini, studio cannot read from it" in str(hub_warning(access, ["mini", "studio"]))
    assert hub_warning(access, []) is None
    assert hub_warning(HubAccess(endpoint="http://hub.lan:8090"), ["mini"]) is None


class LonelyLink:
    """A resident that knows no other machine."""

    async def describe(self) -> MachineState:
        return MachineState(at=1.0, facts=MachineFacts(name="box", boot_id="aa", shardhub="1"))


def test_a_machine_that_left_meanwhile_is_named() -> None:
    """What is read on it is not, and what to do is said."""
    orders = {"mini": FileOrder.model_construct(source=Source(repo="ann/Llama", commit="e" * 40), files=())}
    reading = read_on_machines(
        LonelyLink(),  # type: ignore[arg-type] - all that is asked
        None,  # type: ignore[arg-type] - nothing is dialled
        orders,
        lambda name, report: None,
        access=HubAccess(endpoint="http://hub.lan"),
    )
    with pytest.raises(NodeUnreachable, match="mini could not read its layers: it has left the cluster"):
        asyncio.run(reading)
