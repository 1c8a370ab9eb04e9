"""Models brought up on three machines: real residents over TLS, each with its own state and cache, and a local Hub."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from huggingface_hub import HfApi

from shardhub.errors import Conflict, DoesNotFit, PlanError, UsageError
from shardhub.hub.client import hub_api
from shardhub.localhub.server import RunningHub, running_hub
from shardhub.resident.deployments import Deployment
from shardhub.resident.records import read_record
from shardhub.usecases.answer import Sampling
from shardhub.usecases.cluster import Cluster as OpenCluster
from shardhub.usecases.cluster_cut import ClusterCutSettings
from shardhub.usecases.cluster_view import ServedPipeline
from shardhub.usecases.cut import Cut
from shardhub.usecases.fitting import list_fitting
from shardhub.usecases.open_head import open_head
from shardhub.usecases.order_follower import follow
from shardhub.usecases.publish import PublishSettings, publish
from shardhub.usecases.served import choose_served
from shardhub.usecases.start_head import HeadSettings
from shardhub.usecases.up import Up, UpSettings, down
from shardhub.usecases.up_plan import PlacingSettings
from tests import forks
from tests.cut import tiny_model
from tests.hub import faulty
from tests.nodes import shardhub
from tests.residents import ResidentProcess, end_all, member, reached
from tests.security.cluster import Cluster
from tests.waiting import wait_until

WEIGHTS = ".safetensors"
NAMES = ("box", "mini", "studio")
# A tiny model fits on each machine, so its layers are placed by hand.
THREE = ("box=0-1", "mini=2-3", "studio=4-5")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """A Hub of the module's own."""
    with running_hub(tmp_path_factory.mktemp("hub") / "hub") as running:
        yield running


@pytest.fixture(scope="module")
def net(hub: RunningHub) -> Iterator[faulty.Network]:
    """The network to the Hub, which counts bytes."""
    with faulty.network(hub.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def api(hub: RunningHub, net: faulty.Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HfApi]:
    """Its client; the environment of who brings models up names the Hub."""
    running = hub
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", net.endpoint)
        patch.setenv("HF_TOKEN", token := running.token("ann"))
        patch.setenv("SHARDHUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield hub_api(running.endpoint, token)


@pytest.fixture
def unread_model(api: HfApi, tmp_path: Path, tiny_tokenizer: Callable[[Path], None]) -> str:
    """Another one, with other weights, of which no machine has read anything."""
    folder = tiny_model(tmp_path / "unread", tie_word_embeddings=True, intermediate_size=96)
    tiny_tokenizer(folder)
    return uploaded(api, "ann/unread", folder)


def uploaded(api: HfApi, repo: str, folder: Path) -> str:
    """Put a folder into a new repo."""
    api.create_repo(repo)
    api.upload_folder(repo_id=repo, folder_path=folder)
    return repo


@pytest.fixture(scope="module")
def machines(api: HfApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ResidentProcess]]:
    """Three machines that know each other."""
    folder = tmp_path_factory.mktemp("machines")
    cluster = Cluster(folder / "cluster")

    def start(name: str, *seeds: str) -> ResidentProcess:
        # They know neither the Hub nor a token: both come with what they are asked for.
        env = {"SHARDHUB_CACHE": str(folder / f"{name}-cache"), "HF_ENDPOINT": "http://127.0.0.1:1", "HF_TOKEN": ""}
        return member(cluster, folder, name, seeds=seeds, env=env)

    started: list[ResidentProcess] = []
    try:
        for name in NAMES:  # loopback addresses are not handed on, so each calls all before it
            started.append(start(name, *(machine.address for machine in started)))
            started[-1].wait_ready()
        for machine, name in zip(started, NAMES, strict=True):
            with machine.cluster() as seen:
                wait_until(lambda seen=seen, others={*NAMES} - {name}: reached(seen.own().members) == others)
        yield started
    finally:
        end_all(started)


@pytest.fixture
def cluster(machines: list[ResidentProcess]) -> Iterator[OpenCluster]:
    """The cluster as commands on the first machine see it."""
    with machines[0].cluster() as opened:
        yield opened


def settings(*on: str, name: str | None = None, context: int | None = 64) -> UpSettings:
    return UpSettings(cutting=ClusterCutSettings(name=name, context=context), placing=PlacingSettings(on=on))


def test_a_plain_model_is_up_on_three_machines(cluster: OpenCluster, model: str, net: faulty.Network) -> None:
    """Each machine reads and serves its layers, and every tensor comes from the Hub once; `down` ends all nodes."""
    placed = Up(cluster, model, settings(*THREE))
    net.forget()
    shown: list[set[str]] = []
    deployment = placed.order(lambda states: shown.append({state.machine for state in states}))
    assert shown[-1] == set(NAMES)
    served = follow(cluster, deployment)
    assert [(node.machine, node.start, node.stop) for node in served.nodes] == [
        ("box", 0, 2),
        ("mini", 2, 4),
        ("studio", 4, 6),
    ]
    assert len(set(served.addresses)) == 3
    tensors = placed.plan.placeable.candidate.model.checkpoint.size_bytes
    assert tensors <= net.fetched(WEIGHTS) <= 1.05 * tensors
    down(cluster, served.name)
    wait_until(lambda: not any(machine.nodes for machine in cluster.machines()))
    assert cluster.pipelines() == ()


def test_heads_need_no_address(cluster: OpenCluster, machines: list[ResidentProcess], model: str) -> None:
    """With one pipeline up, a head is given nothing: the resident says what is up, and where its nodes answer."""
    follow(cluster, Up(cluster, model, settings(*THREE)).order())
    place = machines[2].place
    env = {"SHARDHUB_STATE": str(place.state), "SHARDHUB_TLS": str(place.tls)}
    made = shardhub("generate", "--no-local", "--json", "--max-tokens", 4, "-p", "hello", env=env)
    assert made.returncode == 0, made.stderr
    answer = json.loads(made.stdout)
    assert len(answer["tokens"]) == 4
    assert [stage["layers"] for stage in answer["stages"]] == [[0, 2], [2, 4], [4, 6]]
    shown = shardhub("status", "--json", env=env)
    assert json.loads(shown.stdout)["can_run"] is True
    listed = shardhub("ps", "--json", env=env)
    assert [node["machine"] for pipeline in json.loads(listed.stdout) for node in pipeline["nodes"]] == list(NAMES)


def test_an_interrupted_up_orders_nothing_and_the_next_one_goes_on(
    cluster: OpenCluster, machines: list[ResidentProcess], unread_model: str, net: faulty.Network
) -> None:
    """`up` is killed while a machine reads: nothing is served, and no process reads on; another `up` brings it up."""
    place = machines[1].place
    env = {"SHARDHUB_STATE": str(place.state), "SHARDHUB_TLS": str(place.tls)}
    words = ["up", unread_model, "--name", "killed", "--yes", *(word for each in THREE for word in ("--on", each))]
    process = forks.popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, **env})
    lines = []
    for line in iter(process.stderr.readline, ""):
        lines.append(line)
        if "checking that the chain" in line:
            break  # all headers are read, and no weights
    assert "checking that the chain" in lines[-1], lines
    held = net.when(WEIGHTS, faulty.stall(0.5))
    wait_until(lambda: held.times == 0)
    assert reading_processes(machines)
    process.kill()
    process.wait()
    process.stderr.close()
    wait_until(lambda: not reading_processes(machines))
    assert "killed" not in {pipeline.name for pipeline in cluster.pipelines()}
    assert not any(node.pipeline == "killed" for machine in cluster.machines() for node in machine.nodes)
    again = shardhub(*words, env=env)
    assert again.returncode == 0, again.stderr
    assert "killed is up on box, mini, studio." in again.stdout
    down(cluster, "killed")


def reading_processes(machines: list[ResidentProcess]) -> list[psutil.Process]:
    """Processes in which machines read weight files."""
    return [
        child
        for machine in machines
        for child in psutil.Process(machine.process.pid).children()
        if "read-files" in command_of(child)
    ]


def command_of(process: psutil.Process) -> list[str]:
    """The words of a process's command; none if it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_of_two_ups_at_once_one_holds_whole(cluster: OpenCluster, machines: list[ResidentProcess], model: str) -> None:
    """Two members order one name for other machines and contexts: all follow one order, and the other `up` says so."""
    with machines[1].cluster() as other, ThreadPoolExecutor(2) as threads:
        ups = [
            (cluster, Up(cluster, model, settings(*THREE, name="both"))),
            (other, Up(other, model, settings("mini=0-3", "studio=4-5", name="both", context=32))),
        ]

        def order(pair: tuple[OpenCluster, Up]) -> Deployment | Conflict:
            try:
                return pair[1].order()
            except Conflict as error:
                return error

        def bring_up(pair: tuple[OpenCluster, Deployment | Conflict]) -> ServedPipeline | Conflict:
            if isinstance(pair[1], Conflict):
                return pair[1]
            try:
                return follow(pair[0], pair[1])
            except Conflict as error:
                return error

        orders = list(threads.map(order, ups))
        ends = list(threads.map(bring_up, zip((cluster, other), orders, strict=True)))
    (won,) = [end for end in ends if not isinstance(end, Conflict)]
    (shown,) = [pipeline for pipeline in cluster.pipelines() if pipeline.name == "both"]
    assert shown.deployment == won.deployment
    down(cluster, "both")


def test_a_published_pipeline_is_up_at_its_own_cuts(cluster: OpenCluster, model: str) -> None:
    """Machines serve adjacent shards of it, and `up` without a model lists it with its speed."""
    repo = publish(model, Cut(cuts=(2, 4)), PublishSettings(by_reference=True, assume_yes=True, name="pub")).pipeline
    placed = Up(cluster, repo, settings("box=0", "mini=1-2"))
    assert placed.plan.placeable.facts.cuts == [2, 4]
    served = follow(cluster, placed.order())
    assert [(node.machine, node.start, node.stop) for node in served.nodes] == [("box", 0, 2), ("mini", 2, 6)]
    (listed,) = list_fitting(cluster, UpSettings())
    assert listed.name == repo
    assert listed.tokens_per_s is not None
    down(cluster, served.name)


def test_what_cannot_be_placed_is_refused(cluster: OpenCluster, model: str, tmp_path: Path) -> None:
    """Too many replicas, an unknown machine, layers that are not there, and a name that is not up."""
    with pytest.raises(DoesNotFit, match="4 times"):
        Up(cluster, model, UpSettings(placing=PlacingSettings(replicas=4)))
    with pytest.raises(PlanError, match="attic"):
        Up(cluster, model, settings("attic=0-1"))
    with pytest.raises(UsageError, match="out of range"):
        Up(cluster, model, settings("box=0-9"))
    with pytest.raises(UsageError, match="is not up"):
        down(cluster, "nothing")


def test_a_stage_of_a_dead_machine_is_served_by_another_and_the_answer_goes_on(
    cluster: OpenCluster, machines: list[ResidentProcess], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine dies in the middle of an answer: its layers are placed on another, and the tokens are the same."""
    follow(cluster, Up(cluster, model, settings(*THREE)).order())
    place = machines[0].place
    monkeypatch.setenv("SHARDHUB_STATE", str(place.state))
    chosen = choose_served(None, place)
    head_settings = HeadSettings(pipeline=chosen.pipeline, tls=place.tls, allow_local=False)
    with open_head(head_settings) as head:
        sampling = Sampling(max_tokens=24)
        expected = head.answer("hello", sampling).tokens
        stream = head.stream("hello", sampling)
        next(iter(stream))
        kill_machine(machines[1])
        for _ in stream:
            pass
        assert stream.answer.tokens == expected
        assert stream.answer.usage.num_recoveries >= 1
    (served,) = cluster.pipelines()
    assert served.is_ready
    assert "mini" not in {node.machine for node in served.nodes}
    assert {(node.start, node.stop) for node in served.nodes} == {(0, 2), (2, 4), (4, 6)}


def kill_machine(machine: ResidentProcess) -> None:
    """End everything of a machine at once, as a power cut would."""
    records = [read_record(path) for path in machine.place.folder.nodes.glob("*.json")]
    machine.process.kill()
    for record in records:
        if record is not None and record.process is not None:
            record.process.kill()
    machine.wait()
