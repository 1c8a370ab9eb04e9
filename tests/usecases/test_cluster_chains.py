"""A gateway that serves what is up in its machine's cluster."""

from __future__ import annotations

import httpx
import pytest

from shardhub.errors import UsageError
from shardhub.gateway.settings import GatewaySettings
from shardhub.resident.deployments import Deployment
from shardhub.usecases.cluster_chains import ClusterChains
from shardhub.usecases.cluster_place import ClusterPlace
from shardhub.usecases.open_gateway import open_gateway
from shardhub.usecases.start_head import HeadSettings
from tests import cut
from tests.gateway.conftest import save_model
from tests.residents import ResidentProcess, deployed, end_all
from tests.waiting import wait_until
from tests.watching import Listener

ANY = HeadSettings(pipeline="")


def models(url: str) -> list[str]:
    return [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]]


def test_a_gateway_follows_what_is_up(tmp_path) -> None:
    """A pipeline that is ordered is served under its name, on a machine by name; taken down, it is served no longer."""
    pipeline = cut.cut(save_model(tmp_path / "model"), tmp_path / "out", (3,)).folder
    resident = ResidentProcess(tmp_path / "state", options=("--name", "studio")).wait_ready()
    watcher = Listener()
    try:
        with resident.cluster() as cluster:
            order = deployed(pipeline, "studio", ends=(6,))
            cluster.want(order)
            with open_gateway(ClusterChains(ANY, resident.place), GatewaySettings(port=0), watcher) as running:
                assert models(running.url) == ["pipe"]
                body = {"model": "pipe", "prompt": "A", "max_tokens": 2}
                answer = httpx.post(f"{running.url}/v1/completions", json=body, timeout=60)
                assert answer.json()["usage"]["completion_tokens"] == 2
                (machine,) = httpx.get(f"{running.url}/shardhub/state").json()["machines"]
                assert machine["name"] == "studio"
                assert 'chain="pipe@' in httpx.get(f"{running.url}/metrics").text
                cluster.want(Deployment(name="pipe", counter=2, member="studio"))
                wait_until(lambda: models(running.url) == [])
                wait_until(lambda: any("nothing is up" in note for note in watcher.notes))
                cluster.want(order.model_copy(update={"counter": 3}))
                wait_until(lambda: models(running.url) == ["pipe"])
    finally:
        end_all([resident])


def test_without_a_resident_a_pipeline_must_be_given(tmp_path) -> None:
    """Where no resident runs, the error says how a pipeline is given."""
    with pytest.raises(UsageError, match="No pipeline was given") as error:
        ClusterChains(ANY, ClusterPlace(state=tmp_path))
    assert "shardhub gateway ORG/MODEL-pipeline" in error.value.hint
