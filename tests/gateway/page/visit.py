"""A user's visit to the page."""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 60


class Visit:
    """A fresh browser profile at the page of a gateway.

    Args:
        browser: Of playwright.
        url: The gateway's, with or without /v1.
        options: Of the profile.

    Attributes:
        page: Playwright's.
        said: What the browser's console had to complain about.
        elsewhere: Requests to other hosts.
    """

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.home = url.removesuffix("/v1").rstrip("/") + "/"
        self._context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}} | options)
        self._context.set_default_timeout(TIMEOUT_S * 1000)
        self.page = self._context.new_page()
        self.said: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", self._asked)

    def __enter__(self) -> Visit:
        self.page.goto(self.home)
        self.page.wait_for_selector(".stage", state="attached")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.close()
        if error is None:
            assert self.said == []
            assert self.elsewhere == []

    def _asked(self, request: Any) -> None:
        if urlsplit(request.url).netloc != urlsplit(self.home).netloc and not request.url.startswith(
            ("blob:", "data:")
        ):
            self.elsewhere.append(request.url)

    def until(self, expression: str) -> None:
        """Wait until a condition is true; playwright's own function would evaluate text, which the policy forbids."""
        ends = time.monotonic() + TIMEOUT_S
        while not self.page.evaluate(expression):
            assert time.monotonic() < ends, f"never became true: {expression}"
            self.page.wait_for_timeout(20)

    def limit(self, num_tokens: int) -> None:
        """Limit answers to this many tokens."""
        self.page.evaluate(f"localStorage.setItem('shardhub.sampling', '{{\"max_tokens\": {num_tokens}}}')")
        self.page.reload()
        self.page.wait_for_selector(".stage", state="attached")

    def have_said(self, text: str) -> None:
        """Make the model answer this text: the request that the page sends allows nothing else."""

        def narrowed(route: Any) -> None:
            body = json.loads(route.request.post_data) | {"guided_choice": [text], "max_tokens": None}
            route.continue_(post_data=json.dumps(body))

        self.page.route("**/v1/chat/completions", narrowed)

    def remember(self, *answers: str) -> None:
        """Open a kept conversation with these answers, without asking a model."""
        messages = [part for text in answers for part in ({"role": "user", "content": "?"}, _answer(text))]
        stored = json.dumps({"id": "kept", "created": 0, "changed": 0, "system": "", "messages": messages})
        self.page.evaluate("text => localStorage.setItem('shardhub.conversation.kept', text)", stored)
        self.page.reload()
        self.page.wait_for_selector(".message.assistant .tools")

    def go_on(self) -> None:
        """Make the model go on to the limit of tokens, past its own end."""

        def endless(route: Any) -> None:
            route.continue_(post_data=json.dumps(json.loads(route.request.post_data) | {"ignore_eos": True}))

        self.page.route("**/v1/chat/completions", endless)

    def ask(self, text: str, *, wait: bool = True) -> None:
        """Type and send a message; wait for the whole answer."""
        self.page.fill("#input", text)
        self.page.press("#input", "Enter")
        if wait:
            self.done()

    def done(self) -> None:
        """Wait until no answer is in progress."""
        self.page.wait_for_selector("#send:not([hidden])")

    @property
    def answer(self) -> Any:
        """The text of the last answer."""
        return self.page.locator(".message.assistant").last

    @property
    def kept(self) -> list[dict[str, Any]]:
        """Conversations that the browser has stored."""
        stored = self.page.evaluate(
            "Object.keys(localStorage).filter(k => k.startsWith('shardhub.conversation.')).map(k => localStorage[k])"
        )
        return [json.loads(text) for text in stored]


def _answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "reasoning": "", "finish": "stop"}
