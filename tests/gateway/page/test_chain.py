"""The picture of the chain."""

from __future__ import annotations

import time

import pytest

from tests import cut, nodes
from tests.gateway.conftest import PIECE_S, save_model
from tests.gateway.page.visit import Visit
from tests.gateway.serving import GatewayProcess
from tests.ports import kept
from tests.proxy import Proxy

pytestmark = pytest.mark.browser

# It takes a second or two; the machine may stall meanwhile.
SEEN_S = 10.0


def test_stages_are_shown_in_order_with_what_they_do(visit, served) -> None:
    """Each stage shows its node, layers, memory, time per token, bytes of the hop, and health in words."""
    stages = visit.page.locator(".stage")
    assert stages.locator(".node").all_inner_texts() == served.addresses
    assert stages.locator(".layers").all_inner_texts()[0].startswith("layers 0")
    visit.until("[...document.querySelectorAll('.stage .health')].map(e => e.innerText).join() === 'Ready,Ready'")
    visit.limit(900)
    visit.go_on()
    visit.ask("Hello")
    visit.until("[...document.querySelectorAll('.figures b')].every(e => parseFloat(e.textContent) > 0)")
    visit.until("document.querySelector('.hop').textContent.includes('a token')")
    assert stages.locator(".memory").first.get_attribute("aria-label").startswith("Memory: ")
    assert visit.page.locator(".uplot canvas").count() == 2
    visit.until("/at most [1-9]/.test(document.querySelector('#speed-plot').ariaLabel)")


def test_the_chain_comes_back_by_itself(visit) -> None:
    """Without a connection the page says so; once it is back the picture goes on."""
    visit.page.wait_for_selector("#live[data-state=live]")
    visit.page.context.set_offline(True)
    visit.page.evaluate("window.dispatchEvent(new Event('online'))")  # ends the stream that is open
    visit.page.wait_for_selector("#live[data-state=silent]")
    visit.page.context.set_offline(False)
    visit.page.wait_for_selector("#live[data-state=live]")
    visit.said.clear()  # the browser notes requests that failed


def test_without_streams_the_page_asks(browser, gateway) -> None:
    """Where a proxy holds back streams, the page polls."""
    visit = Visit(browser, gateway.url)
    visit.page.route("**/shardhub/events*", lambda route: route.abort())
    with visit:
        visit.page.wait_for_selector("#live[data-state=polling]")
        visit.said.clear()


def test_a_lost_node_is_seen_and_so_is_its_return(browser, tmp_path) -> None:
    """Within seconds a stage is shown as lost, in words too; a restarted node is ready, and both are events.

    An answer on its way says what it waits for, and goes on.
    """
    pipeline = cut.cut(save_model(tmp_path / "model"), tmp_path / "out", (3,))
    shards = [cut.shard_folder(pipeline, index) for index in range(2)]
    started = nodes.start((shards[0],), (shards[1],))
    line = Proxy(started[0].address)
    line.slow(PIECE_S)
    options = ("--no-local", "--recover-wait", "200")
    process = GatewayProcess(pipeline.folder, [line.address, started[1].address], options)
    try:
        with Visit(browser, process.url) as visit:
            visit.limit(900)
            visit.go_on()
            visit.ask("Hello", wait=False)
            visit.until("document.querySelector('.message.assistant > .text')?.textContent.length > 5")
            started[1].process.kill()
            begun = time.monotonic()
            visit.page.wait_for_selector(".stage >> nth=1 >> text=Lost")
            assert time.monotonic() - begun < SEEN_S
            visit.page.wait_for_selector("#problem")
            visit.page.wait_for_selector(".message.assistant > .held")
            assert "UNKNOWN" not in visit.page.locator(".stage").last.inner_text()
            started[1].process.wait()
            with kept(int(started[1].address.rpartition(":")[2])) as port:
                started.append(nodes.Node(shards[1], options=("--port", str(port))).wait_ready())
            line.heal()
            visit.page.wait_for_selector(".stage >> nth=1 >> text=Ready")
            visit.page.wait_for_selector("#events b[data-kind=lost]")
            visit.page.wait_for_selector(".message.assistant > .held", state="hidden")
            visit.page.wait_for_selector(".message.assistant .stats")
            assert visit.page.locator(".failure").count() == 0
    finally:
        process.stop()
        nodes.stop_all(started)
        line.close()
