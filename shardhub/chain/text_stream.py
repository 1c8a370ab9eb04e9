"""A stream of tokens with their text: what every answer is made from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from shardhub.chain.request import Request
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.stream import Finish, Token
from shardhub.text.detokenizer import Detokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A token, and the text that is certain since.

    Attributes:
        token: The token; None once there are no more, with the text that was held back until then.
        text: May be empty, as a character may take several tokens.
    """

    token: Token | None
    text: str


class TextStream:
    """Runs a request and decodes its tokens: up to an end token, to its most tokens, or until `end` is called.

    Use it as a context manager, which cancels the request if it is left early, and iterate over it once.

    Args:
        scheduler: Runs the request.
        request: The request; one for no tokens only runs its prompt.
        detokenizer: Decodes the answer.

    Attributes:
        tokens: The stream of its tokens.
        finish: Why the answer ended; meaningful only after its end.
        num_tokens: Number of tokens read, the end token included.

    Raises:
        PromptError, ContextExceeded: The prompt cannot be run.
        Overloaded: Too many requests are waiting already.
    """

    def __init__(self, scheduler: Scheduler, request: Request, detokenizer: Detokenizer) -> None:
        self.tokens = scheduler.submit(replace(request, max_tokens=max(1, request.max_tokens)))
        self.finish: Finish = "length"
        self.num_tokens = 0
        self._max_tokens = request.max_tokens
        self._detokenizer = detokenizer
        self._has_ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.tokens.cancel()

    def end(self) -> None:
        """End the answer with the token at hand, as a stop string does."""
        self._has_ended = True
        self.finish = "stop"
        self.tokens.stop()

    async def __aiter__(self) -> AsyncIterator[Decoded]:
        async for token in self.tokens:
            if self._max_tokens == 0:
                break
            self.num_tokens += 1
            if token.is_end:
                self.finish = "stop"
                break
            yield Decoded(token=token, text=self._detokenizer.add(token.id))
            if self._has_ended:
                break
        self.tokens.cancel()
        yield Decoded(token=None, text=self._detokenizer.finish())
