"""The page of a gateway of several models."""

from __future__ import annotations

import json

import pytest

import shardhub
from tests import cut
from tests.gateway.page.test_access import PHONE, violations
from tests.gateway.page.visit import Visit
from tests.gateway.serving import GatewayProcess
from tests.gateway.several import MODELS, three_models
from tests.nodes import Node

pytestmark = pytest.mark.browser

NAMES = list(MODELS)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    with three_models(tmp_path_factory.mktemp("three")) as served:
        yield served


@pytest.fixture(scope="module")
def several(three):
    """A gateway of three models."""
    process = GatewayProcess(three.folders, three.addresses, ("--no-local",))
    try:
        yield process
    finally:
        assert process.stop() == 0, "the gateway did not end well"


def asked_model(visit) -> str:
    """Ask a question; returns the model that the page requested."""
    with visit.page.expect_request("**/v1/chat/completions") as asked:
        visit.ask("Hello")
    return json.loads(asked.value.post_data)["model"]


def test_the_user_switches_models(browser, several, three) -> None:
    """The chosen model answers, its chain is shown, and the choice outlasts a reload."""
    with Visit(browser, several.url) as visit:
        visit.limit(4)
        options = visit.page.locator("#models option")
        assert options.all_inner_texts() == NAMES
        assert asked_model(visit) == "ant"
        visit.page.select_option("#models", "bee")
        visit.until(f"document.querySelector('.stage .node').textContent === '{three.nodes['bee'].address}'")
        assert asked_model(visit) == "bee"
        assert "bee" in visit.answer.locator(".stats").inner_text()
        assert visit.page.title() == "bee \u2013 shardhub"
        visit.page.reload()
        visit.until(f"document.querySelector('.stage .node')?.textContent === '{three.nodes['bee'].address}'")
        assert visit.page.input_value("#models") == "bee"
        stored = [message.get("model") for message in visit.kept[0]["messages"]]
        assert stored == [None, "ant", None, "bee"]


def test_machines_are_shown_with_what_they_serve(browser, several, three) -> None:
    """Each machine is listed by its name with the stages of every model that it serves, counted from 0."""
    with Visit(browser, several.url) as visit:
        machines = visit.page.locator("#machines li")
        assert machines.locator("b").all_inner_texts() == three.addresses
        assert machines.locator("span").all_inner_texts() == [
            f"{name}: stages 0 to 1, layers 0\u20135" for name in NAMES
        ]


def test_a_model_that_is_gone_is_replaced(browser, three) -> None:
    """A model that was chosen and is no longer served gives its place to the first one, and the page says so."""
    heads = [
        shardhub.HeadSettings(pipeline=three.pipelines[name].folder, nodes=three.nodes[name].address) for name in NAMES
    ]
    with (
        shardhub.open_gateway(heads, shardhub.GatewaySettings(port=0)) as gateway,
        Visit(browser, gateway.url) as visit,
    ):
        visit.limit(4)
        visit.page.select_option("#models", "cat")
        visit.until(f"document.querySelector('.stage .node').textContent === '{three.nodes['cat'].address}'")
        gateway.serve(heads[:2])
        visit.page.wait_for_selector("#banner:not([hidden])")
        assert "cat is no longer served here. ant answers" in visit.page.inner_text("#banner")
        assert asked_model(visit) == "ant"
        gateway.serve(heads[:1])
        visit.page.wait_for_selector("#models", state="hidden")
        assert visit.page.inner_text("#model") == "ant"


def test_several_chains_of_a_model_are_shown_apart(browser, three) -> None:
    """The stages of each chain of a model are listed with the number of the chain."""
    pipeline = three.pipelines["ant"]
    other = Node(*(cut.shard_folder(pipeline, index) for index in range(2)), options=("--context", "512"))
    try:
        other.wait_ready()
        addresses = [three.nodes["ant"].address, other.address]
        heads = [shardhub.HeadSettings(pipeline=pipeline.folder, nodes=address) for address in addresses]
        with (
            shardhub.open_gateway(heads, shardhub.GatewaySettings(port=0)) as gateway,
            Visit(browser, gateway.url) as visit,
        ):
            visit.until("document.querySelectorAll('.stage').length === 2")
            names = visit.page.locator(".stage .name").all_inner_texts()
            assert names == ["Chain 0, stages 0 to 1", "Chain 1, stages 0 to 1"]
            assert visit.page.locator(".hop").count() == 0
    finally:
        other.kill()


@pytest.mark.parametrize("size", [None, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing_with_several_models(browser, several, axe, size) -> None:
    """The choice of models and the list of machines have no fault for axe-core, and fit a phone."""
    options = {"viewport": size} if size else {}
    with Visit(browser, several.url, **options) as visit:
        assert violations(visit, axe) == []
        assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if size:
            visit.page.click("#open-chain")
            assert violations(visit, axe) == []
