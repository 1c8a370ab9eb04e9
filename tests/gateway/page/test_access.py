"""The page with a screen reader, without a mouse, and on a small screen."""

from __future__ import annotations

import pytest

from tests.gateway.page.test_chat import MARKDOWN
from tests.gateway.page.visit import Visit

pytestmark = pytest.mark.browser

WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 360, "height": 740}


def violations(visit, axe) -> list[str]:
    """The faults that axe-core reports in the page's present state."""
    visit.until("document.getAnimations().every(a => a.playState !== 'running' || !a.transitionProperty)")
    # Not as an element: the page's policy would not let it run.
    visit.page.evaluate(axe)
    reported = visit.page.evaluate("axe.run().then(r => r.violations)")
    return [f"{one['id']}: {node['html'][:200]} {node['failureSummary']}" for one in reported for node in one["nodes"]]


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, gateway, axe, scheme, size) -> None:
    """axe-core reports no fault on a first visit, with an answer, and with each dialog and drawer open."""
    with Visit(browser, gateway.url, color_scheme=scheme, viewport=size) as visit:
        assert visit.page.evaluate("document.documentElement.dataset.theme") == scheme
        assert violations(visit, axe) == []
        visit.have_said(MARKDOWN)
        visit.ask("Hello")
        assert violations(visit, axe) == []
        visit.page.click("#open-settings")
        assert violations(visit, axe) == []
        visit.page.keyboard.press("Escape")
        if size == PHONE:
            for button in ("#open-chain", "#open-list"):
                visit.page.click(button)
                assert violations(visit, axe) == []
                visit.page.keyboard.press("Escape")
        else:
            visit.page.click("#open-help")
            assert violations(visit, axe) == []


def test_a_phone_has_room_for_everything(browser, gateway) -> None:
    """At 360 px nothing is cut off at the sides, and the chain is a drawer that returns the focus."""
    with Visit(browser, gateway.url, viewport=PHONE) as visit:
        visit.have_said(MARKDOWN + "\n" + "w" * 300)
        visit.ask("x" * 300)
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 360
        assert visit.page.evaluate("document.querySelector('#scroll').scrollWidth <= 360")
        assert not visit.page.is_visible(".stage")
        visit.page.click("#open-chain")
        assert visit.page.locator(".stage").first.is_visible()
        assert visit.page.evaluate("document.activeElement.matches('#chain .close-side')")
        visit.page.keyboard.press("Escape")
        visit.page.wait_for_selector(".stage", state="hidden")
        assert visit.page.evaluate("document.activeElement.id") == "open-chain"


def test_keys_do_what_the_list_says(visit) -> None:
    """Shift+Enter adds a line, Enter sends, / focuses the message, ? shows the list, Alt+N starts a conversation."""
    visit.limit(3)
    visit.page.fill("#input", "")
    visit.page.keyboard.type("one")
    visit.page.keyboard.press("Shift+Enter")
    visit.page.keyboard.type("two")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector(".message.assistant .stats")
    assert visit.page.locator(".bubble").inner_text() == "one\ntwo"
    visit.page.locator("#scroll").focus()
    visit.page.keyboard.press("?")
    visit.page.wait_for_selector("#help[open]")
    visit.page.keyboard.press("Escape")
    visit.page.wait_for_selector("#help", state="hidden")
    visit.page.locator("#scroll").focus()
    visit.page.keyboard.press("/")
    assert visit.page.evaluate("document.activeElement.id") == "input"
    visit.page.keyboard.press("Alt+n")
    assert visit.page.is_visible("#welcome")


def test_the_theme_goes_round_and_is_kept(visit) -> None:
    """The button steps through the system's theme and both others, and a reload keeps the choice."""
    theme = "document.documentElement.dataset.theme"
    seen = []
    for _ in range(3):
        visit.page.click("#theme")
        seen.append((visit.page.get_attribute("#theme", "aria-label"), visit.page.evaluate(theme)))
        if len(seen) == 1:
            visit.page.reload()
            assert visit.page.evaluate(theme) == "dark"
    assert seen == [("Theme: dark", "dark"), ("Theme: light", "light"), ("Theme: as the system", "light")]
