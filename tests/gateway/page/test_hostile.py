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


FORMULAS = {
    "link": r"\(\href{javascript:window.pwned=1}{x}\)",
    "url": r"\(\url{javascript:window.pwned=1}\)",
    "image": r"\(\includegraphics{http://elsewhere.example/a.png}\)",
    "class": r"\(\class{toast}{x} \id{input}{y} \style{position:fixed}{z} \data{on=1}{w}\)",
    "text": r"\(\text{<img src=x onerror=window.pwned=1>}\)",
    "colour": r"\(\color{red;background:url(http://elsewhere.example/a)}x\)",
    "big": r"$$\rule{99999em}{99999em}$$",
    "far": r"$$\hspace{-99999em}\rule{500em}{500em}\raisebox{-9999em}{x}$$",
    "endless": r"$$\def\a{\a\a}\a$$",
    "deep": "$$" + "{" * 1900 + "x" + "}" * 1900 + "$$",
    "many": r"\(\frac{1}{2}\) " * 40,
    "global": r"\(\gdef\frac#1#2{\text{pwned}}\) \(\frac{1}{2}\)",
}
CODE = {
    "markup": "```html\n<img src=x onerror=window.pwned=1><script>window.pwned=1</script>\n```",
    "name": '```python"><img src=x onerror=window.pwned=1>\nprint(1)\n```',
    "path": "```../../js/main\nx\n```\n\n```constructor\nx\n```\n\n```__proto__\nx\n```",
    "classes": '```html\n<span class="hljs-keyword toast" id="input">x</span>\n```',
}
# Whether the controls of the page can be clicked.
IS_UNCOVERED = """
[...document.querySelectorAll('#input, #new, .brand')].every(each => {
  const { x, y, width, height } = each.getBoundingClientRect();
  return each.contains(document.elementFromPoint(x + width / 2, y + height / 2));
})
"""
# A formula may hold MathML and styles, unlike any other text; nothing else.
FORBIDDEN_BESIDE = FORBIDDEN.replace("math, [style], ", "")


def test_formulas_do_nothing_but_show(visit) -> None:
    """A formula does not run, load, link or cover anything, and does not change how another one is read."""
    visit.remember(*FORMULAS.values())
    visit.page.wait_for_selector(".message math >> nth=40", state="attached")
    shown = visit.page.locator(".message .text")
    assert shown.locator(FORBIDDEN_BESIDE).count() == 0
    assert shown.locator("a, [href], [src], .toast").count() == 0
    assert visit.page.evaluate(SAFE_HANDLERS) == []
    assert visit.page.evaluate("window.pwned") is None
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert "pwned" not in shown.last.locator("math").last.evaluate("node => node.textContent")
    for number in range(len(FORMULAS)):
        visit.page.locator(".message.assistant").nth(number).scroll_into_view_if_needed()
        assert visit.page.evaluate(IS_UNCOVERED)


def test_code_does_nothing_but_show(visit) -> None:
    """Coloured code is text in spans whatever it holds, and its language's name leads to no other file."""
    visit.remember(*CODE.values())
    visit.page.wait_for_selector(".message pre span")
    shown = visit.page.locator(".message .text")
    assert shown.locator(FORBIDDEN).count() == 0
    assert shown.locator("pre :not(code, span)").count() == 0
    assert shown.locator(".toast").count() == 0
    assert visit.page.evaluate(SAFE_HANDLERS) == []
    assert visit.page.evaluate("window.pwned") is None


def test_kept_conversations_that_are_broken_are_left_alone(visit) -> None:
    """A stored conversation that cannot be read is hidden, kept, and does not stop the page."""
    broken = {"a": "{", "b": "null", "c": '{"id":1}', "d": '{"id":"d","messages":[{"role":"x"}]}'}
    for name, text in broken.items():
        visit.page.evaluate("([k, v]) => localStorage.setItem('shardhub.conversation.' + k, v)", [name, text])
    visit.page.reload()
    visit.page.wait_for_selector(".stage")
    assert visit.page.locator(".conversation").count() == 0
    assert visit.page.evaluate("localStorage['shardhub.conversation.a']") == "{"
