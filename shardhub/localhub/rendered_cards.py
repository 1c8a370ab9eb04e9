"""Cards as HTML for pages.

A repo's card is Markdown that anyone who may push has written: HTML in it is shown as text, only http, https and mailto
links are links, and no card keeps the Hub busy.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from markupsafe import Markup
from starlette.concurrency import run_in_threadpool

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_core import StateCore

# The renderer's time grows with the square of some cards' length. The worst of this length took 0.4 s.
MAX_RENDERED_CHARS = 16 << 10
# Rendered cards that are kept, of up to about 150 KB each.
_MAX_CARDS = 128
_LINK = re.compile(r"(https?://|mailto:)", re.IGNORECASE)


class RenderedCards:
    """The cards of a Hub as HTML: each is rendered once, off the event loop, and no two at a time."""

    def __init__(self) -> None:
        self._html: dict[str, Markup] = {}
        self._rendering = asyncio.Lock()

    async def html(self, sha256: str, read: Callable[[], str | None]) -> Markup | None:
        """A card's HTML.

        Args:
            sha256: The card's digest.
            read: Reads its text; None if it is not a text.
        """
        if sha256 in self._html:
            return self._html[sha256]
        async with self._rendering:
            if sha256 in self._html:
                return self._html[sha256]
            html = await run_in_threadpool(_render, read)
        if html is not None:
            while len(self._html) >= _MAX_CARDS:
                del self._html[next(iter(self._html))]
            self._html[sha256] = html
        return html


def card_html(text: str) -> Markup:
    """A card's HTML, without its metadata block; a card too long to be rendered becomes plain text."""
    lines = text.lstrip("\ufeff").splitlines()
    if lines and lines[0].rstrip() == "---":
        end = next((number for number, line in enumerate(lines[1:], start=1) if line.rstrip() == "---"), 0)
        lines = lines[end + 1 :]
    body = "\n".join(lines)
    if len(body) > MAX_RENDERED_CHARS:
        reason = "This card is shown as text: it has {} characters, and only cards of up to {} are rendered."
        paragraph = reason.format(f"{len(body):,}", f"{MAX_RENDERED_CHARS:,}")
        return Markup("<p><small>{}</small></p>\n<pre>{}</pre>\n").format(paragraph, body)
    return Markup(_markdown().render(body))  # noqa: S704  # rendered with HTML off


def _render(read: Callable[[], str | None]) -> Markup | None:
    text = read()
    return None if text is None else card_html(text)


@cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    # Pictures would have to come from elsewhere, or be run as what the uploader says they are: each becomes a link.
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    markdown.core.ruler.push("links", _keep_labels_only)
    return markdown


def _keep_labels_only(state: StateCore) -> None:
    """Hide the tags of links that cards may not have: other schemes start programs, relative addresses lead nowhere."""
    for block in state.tokens:
        is_hidden = False
        for token in block.children or ():
            if token.type == "link_open":
                is_hidden = _LINK.match(str(token.attrGet("href"))) is None
            if token.type in {"link_open", "link_close"}:
                token.hidden = is_hidden
