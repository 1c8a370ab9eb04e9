"""How answers are shown: the colours of code, tables, formulas, and answers that go on."""

from __future__ import annotations

import json

import pytest

from tests.gateway.page.test_access import violations
from tests.gateway.page.visit import Visit

pytestmark = pytest.mark.browser

CODE = '```python\ndef f(x):\n    return "a"  # why\n```\n\n```nothing\nplain <b>\n```\n'
TABLE = "| left | middle | right |\n|:---|:---:|---:|\n| a | b | 1 |\n\n4. four\n5. five\n"
FORMULAS = r"""The square \(a^2\) and

$$\frac{a}{b}
- \sqrt{c}$$

and \[\sum_{i=0}^n i\] and \(\nosuch{x}\), for $5 or $6.
"""


def test_code_has_colours(visit, axe) -> None:
    """Code of a known language is coloured, other code is plain, and its text is the same."""
    visit.remember(CODE)
    block = visit.answer.locator("pre").first
    block.locator(".hljs-keyword").first.wait_for()
    assert block.locator(".hljs-keyword").all_inner_texts() == ["def", "return"]
    assert block.locator(".hljs-string").inner_text() == '"a"'
    assert block.locator(".hljs-comment").inner_text() == "# why"
    assert block.inner_text().strip() == 'def f(x):\n    return "a"  # why'
    plain = visit.answer.locator("pre").last
    assert plain.locator("span").count() == 0
    assert plain.inner_text().strip() == "plain <b>"
    for scheme in ("light", "dark"):
        visit.page.evaluate(f"document.documentElement.dataset.theme = '{scheme}'")
        assert violations(visit, axe) == []


def test_tables_and_lists_are_as_written(visit) -> None:
    """Columns are aligned as the table says, and a list begins with its own number."""
    visit.remember(TABLE)
    sides = "[...document.querySelectorAll('.message td')].map(cell => getComputedStyle(cell).textAlign)"
    assert visit.page.evaluate(sides) == ["left", "center", "right"]
    assert visit.page.evaluate("document.querySelector('.message ol').start") == 4


def test_formulas_are_mathml(visit, axe) -> None:
    r"""`\( \)`, `\[ \]` and `$$ $$` become MathML; what is not a formula stays as it was written."""
    visit.remember(FORMULAS)
    visit.page.wait_for_selector(".message math >> nth=2", state="attached")
    shown = visit.answer.locator(".text").last
    assert shown.locator("math").count() == 3
    assert shown.locator("math msup").first.evaluate("node => node.textContent") == "a2"
    assert shown.locator("math mfrac").count() == 1
    assert shown.locator("math msqrt").count() == 1
    assert shown.locator("ul, li").count() == 0
    assert "\\nosuch{x}" in shown.inner_text()
    assert "for $5 or $6." in shown.inner_text()
    assert visit.page.evaluate("document.querySelector('math[display=block]').getBoundingClientRect().height > 20")
    assert violations(visit, axe) == []


def test_answers_are_shown_so_as_they_come(visit) -> None:
    """An answer that has just come has the same colours and formulas as one that was kept."""
    visit.have_said(FORMULAS + "\n" + CODE)
    visit.ask("Hello")
    visit.page.wait_for_selector(".message math >> nth=2", state="attached")
    visit.page.wait_for_selector(".message .hljs-keyword")


def test_a_first_visit_loads_neither_highlighter_nor_formulas(browser, gateway) -> None:
    """What only some answers need is loaded with the first answer that needs it."""
    with Visit(browser, gateway.url) as visit:
        loaded = "performance.getEntriesByType('resource').map(entry => new URL(entry.name).pathname)"
        paths = visit.page.evaluate(loaded)
        assert not [path for path in paths if "highlight" in path or "temml" in path]
        assert "/page/vendor/marked.umd.js" in paths


def test_an_answer_goes_on_after_the_most_tokens(visit) -> None:
    """Continue adds to the same answer, with what is there already as its beginning."""
    visit.limit(5)
    visit.go_on()
    visit.ask("Hello")
    (kept,) = visit.kept
    before = kept["messages"][-1]
    assert before["finish"] == "length"
    with visit.page.expect_request("**/v1/chat/completions") as asked:
        visit.page.get_by_role("button", name="Continue the answer").click()
    body = json.loads(asked.value.post_data)
    assert body["messages"][-1] == {"role": "assistant", "content": before["content"]}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    visit.done()
    (kept,) = visit.kept
    assert [message["role"] for message in kept["messages"]] == ["user", "assistant"]
    after = kept["messages"][-1]
    assert after["content"].startswith(before["content"])
    assert len(after["content"]) > len(before["content"])
    assert after["stats"]["numTokens"] == 10
    assert visit.page.locator(".message.assistant").count() == 1


def test_a_whole_answer_does_not_go_on(visit) -> None:
    """An answer that ended by itself has no button to continue it."""
    visit.have_said("Yes.")
    visit.ask("Hello")
    assert visit.page.get_by_role("button", name="Continue the answer").count() == 0
