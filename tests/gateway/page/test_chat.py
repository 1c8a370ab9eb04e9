"""The chat in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gateway.conftest import CONTEXT
from tests.gateway.page.visit import Visit
from tests.gateway.serving import GatewayProcess

pytestmark = pytest.mark.browser

MARKDOWN = "# Title\n\nSome **bold** text and `code`.\n\n```python\nprint(1)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"


def test_a_first_visit_says_what_to_do(visit) -> None:
    """Without a conversation there are a heading and ideas, and the message has the focus."""
    assert visit.page.is_visible("#welcome h2")
    assert "2 stages" in visit.page.inner_text("#welcome-text")
    assert visit.page.locator(".idea").count() == 3
    assert visit.page.evaluate("document.activeElement.id") == "input"
    assert visit.page.is_disabled("#send")


def test_a_question_is_answered_and_kept(visit) -> None:
    """The answer, its speed and the context used are shown, and are still there after a reload."""
    visit.have_said(MARKDOWN)
    visit.ask("Hello")
    shown = visit.answer.locator(".text").last
    assert shown.locator("h3").inner_text() == "Title"
    assert shown.locator("strong").inner_text() == "bold"
    assert shown.locator("pre").inner_text().strip() == "print(1)"
    assert shown.locator("td").all_inner_texts() == ["1", "2"]
    stats = visit.answer.locator(".stats").inner_text()
    assert "tokens/s" in stats
    assert "first after" in stats
    assert f"of {CONTEXT:,} tokens" in visit.page.inner_text("#context-text")
    before = visit.page.inner_html("#messages")
    visit.page.reload()
    visit.page.wait_for_selector(".message.assistant .stats")
    assert visit.page.inner_html("#messages") == before
    assert visit.page.inner_text(".conversation .pick") == "Hello"


def test_code_is_copied(visit) -> None:
    """The button of a code block copies its code to the clipboard."""
    visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.have_said(MARKDOWN)
    visit.ask("Hello")
    visit.page.click(".code-top button")
    visit.until("navigator.clipboard.readText().then(text => text.trim() === 'print(1)')")


def test_escape_stops_an_answer(browser, slow_gateway) -> None:
    """The text so far stays, and the chain is free at once."""
    with Visit(browser, slow_gateway.url) as visit:
        visit.go_on()
        visit.ask("Hello", wait=False)
        visit.until("document.querySelector('.message.assistant > .text')?.textContent.length > 5")
        visit.page.keyboard.press("Escape")
        visit.done()
        assert "Stopped" in visit.answer.inner_text()
        (kept,) = visit.kept
        assert kept["messages"][-1]["content"]
        assert kept["messages"][-1]["finish"] == "stopped"
        visit.until("fetch('/shardhub/state').then(a => a.json()).then(s => s.requests.answers === 0)")
        visit.limit(4)
        visit.ask("Again")
        assert visit.page.locator(".message").count() == 4


def test_a_message_is_edited_and_an_answer_made_again(visit) -> None:
    """Editing a message replaces all that follows it, and regenerating replaces the answer."""
    visit.limit(6)
    visit.ask("First")
    visit.ask("Second")
    visit.page.locator(".message.user").first.hover()
    visit.page.get_by_role("button", name="Edit this message").first.click()
    visit.page.get_by_label("Edit the message").fill("Other")
    visit.page.keyboard.press("Enter")
    visit.done()
    (kept,) = visit.kept
    assert [m["content"] for m in kept["messages"] if m["role"] == "user"] == ["Other"]
    visit.page.wait_for_selector(".message.assistant .stats")
    visit.page.get_by_role("button", name="Answer again").click()
    visit.done()
    (kept,) = visit.kept
    assert len(kept["messages"]) == 2


def test_settings_go_with_the_request(visit) -> None:
    """System prompt and sampling are sent as set; empty fields are not sent."""
    visit.page.keyboard.press("Alt+s")
    visit.page.fill("#system", "Be brief.")
    for name, value in {"temperature": "0.5", "top_k": "7", "max_tokens": "5", "seed": "3", "top_p": "9"}.items():
        visit.page.fill(f"#set-{name}", value)
    visit.page.get_by_role("button", name="Done").click()
    with visit.page.expect_request("**/v1/chat/completions") as asked:
        visit.ask("Hello")
    body = json.loads(asked.value.post_data)
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    sent = {name: body.get(name) for name in ("temperature", "top_k", "max_tokens", "seed", "top_p", "min_p")}
    assert sent == {"temperature": 0.5, "top_k": 7, "max_tokens": 5, "seed": 3, "top_p": None, "min_p": None}


def test_conversations_are_exported_and_deleted(visit) -> None:
    """JSON exports contain all data, Markdown is for reading; a deletion can be undone."""
    visit.limit(4)
    visit.ask("Hello you")
    with visit.page.expect_download() as download:
        visit.page.click("#export-json")
    saved = json.loads(Path(download.value.path()).read_text())
    assert saved["messages"][0]["content"] == "Hello you"
    assert saved["model"] == "tiny"
    with visit.page.expect_download() as download:
        visit.page.click("#export-markdown")
    assert download.value.suggested_filename == "hello-you.md"
    assert "## You\n\nHello you\n\n## Model" in Path(download.value.path()).read_text()
    visit.page.get_by_role("button", name="Delete: Hello you").click()
    assert visit.kept == []
    visit.page.get_by_role("button", name="Undo").click()
    assert [len(one["messages"]) for one in visit.kept] == [2]


def test_a_refusal_is_shown(visit) -> None:
    """A refusal by the gateway is shown under the question, with a button to try again."""
    visit.ask("Hello " * CONTEXT)
    assert f"maximum context length is {CONTEXT}" in visit.answer.locator(".failure").inner_text()
    assert visit.answer.get_by_role("button", name="Answer again").inner_text() == "Try again"
    visit.said.clear()  # the browser itself notes an answer of 400


def test_a_key_is_asked_for_and_kept_for_the_tab(browser, served, tmp_path) -> None:
    """Where the API refuses, the page asks for a key, which is kept only for the tab."""
    key = "sk-test-of-the-page-0123456789"
    process = GatewayProcess(served.pipeline, served.addresses, env={"SHARDHUB_API_KEY": key})
    try:
        given = {"username": "any", "password": key}
        visit = Visit(browser, process.url, http_credentials=given)

        def bare(route) -> None:
            headers = dict(route.request.headers)
            if headers.get("authorization", "").lower().startswith("bearer"):
                route.continue_()
            else:
                route.continue_(headers=headers | {"authorization": "Bearer wrong"})

        visit.page.route("**/v1/**", bare)
        with visit:
            visit.page.wait_for_selector("#settings[open]")
            visit.page.fill("#key", key)
            visit.page.get_by_role("button", name="Done").click()
            visit.page.wait_for_selector("#banner", state="hidden")
            visit.ask("Hello", wait=False)
            visit.page.wait_for_selector(".message.assistant .text p")
            visit.page.keyboard.press("Escape")
            visit.done()
            assert key not in visit.page.evaluate("JSON.stringify(localStorage)")
            assert all("401" in text for text in visit.said)
            visit.said.clear()
    finally:
        process.stop()
