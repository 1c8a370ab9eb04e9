"""Text that contains markup or code."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.browser

ATTEMPTS = {
    "script": "<script>window.pwned = 1</script>",
    "handler": '<img src=x onerror="window.pwned = 1">',
    "svg": '<svg onload="window.pwned = 1"><animate onbegin="window.pwned = 1" attributeName=x dur=1s>',
    "frame": '<iframe srcdoc="<script>parent.pwned = 1</script>"></iframe>',
    "link": '[press](javascript:window.pwned=1) [me](JaVaScRiPt&#58;window.pwned=1) <a href="javascript:pwned=1">x</a>',
    "data": "[press](data:text/html,<script>window.pwned=1</script>) [v](vbscript:pwned)",
    "image": '![x](http://elsewhere.example/a.png) ![y](javascript:window.pwned=1) ![" onerror="pwned=1](x)',
    "style": '<style>body { display: none }</style><div style="position:fixed;inset:0">over all</div>',
    "form": '<form action="http://elsewhere.example"><input name=key autofocus onfocus="window.pwned = 1"></form>',
    "names": "<a id=input name=input href=http://x.example>x</a><b id=conversations>y</b>",
    "mutation": '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=pwned=1&gt;">',
    "code": '```"><img src=x onerror=window.pwned=1>\n</code></pre><script>window.pwned=1</script>\n```',
    "base": '<base href="http://elsewhere.example/"><meta http-equiv=refresh content="0;url=http://elsewhere.example">',
}
FORBIDDEN = "script, img, iframe, object, embed, svg, style, form, input, base, meta, math, [style], [id], [name], link"
SAFE_HANDLERS = """
[...document.querySelectorAll('#messages *')].flatMap(e => [...e.attributes])
  .filter(a => a.name.startsWith('on') || /^\\s*(javascript|data|vbscript):/i.test(a.value)).map(a => a.name + a.value)
"""


@pytest.mark.parametrize("name", ATTEMPTS)
def test_text_of_model_and_user_stays_text(visit, name) -> None:
    """Text from the model, the user or storage does not run, load, link to a script or cover the page."""
    text = ATTEMPTS[name]
    visit.have_said(text)
    visit.ask(text)
    for _ in range(2):
        (kept,) = visit.kept
        assert [message["content"] for message in kept["messages"]] == [text.strip(), text]
        assert visit.page.locator(".message.user .bubble").inner_text() == text
        assert visit.page.locator(".message .text").locator(FORBIDDEN).count() == 0
        assert visit.page.locator(".bubble *").count() == 0
        assert visit.page.evaluate(SAFE_HANDLERS) == []
        for link in visit.page.locator(".message .text a").all():
            assert link.get_attribute("href") is None or link.get_attribute("href").startswith(("http:", "https:"))
            assert link.get_attribute("rel") == "noopener noreferrer nofollow"
        assert visit.page.evaluate("window.pwned") is None
        visit.page.reload()  # and what was kept is no more trusted
        visit.page.wait_for_selector(".message.assistant .tools")


def test_kept_conversations_that_are_broken_are_left_alone(visit) -> None:
    """A stored conversation that cannot be read is hidden, kept, and does not stop the page."""
    broken = {"a": "{", "b": "null", "c": '{"id":1}', "d": '{"id":"d","messages":[{"role":"x"}]}'}
    for name, text in broken.items():
        visit.page.evaluate("([k, v]) => localStorage.setItem('shardhub.conversation.' + k, v)", [name, text])
    visit.page.reload()
    visit.page.wait_for_selector(".stage")
    assert visit.page.locator(".conversation").count() == 0
    assert visit.page.evaluate("localStorage['shardhub.conversation.a']") == "{"
