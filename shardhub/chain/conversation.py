"""A chat's session, kept on the nodes from turn to turn."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from shardhub.chain.generate import check_prompt
from shardhub.chain.head import Head, Piece, Timing
from shardhub.chain.session import ChainSession
from shardhub.parameters import SamplingParameters


class Conversation:
    """A chat's session: each turn sends only what the chain has not seen."""

    def __init__(self, head: Head, parameters: SamplingParameters) -> None:
        self._head = head
        self._parameters = parameters
        self._session: ChainSession | None = None

    async def answer(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        stops: Sequence[str] = (),
        timing: Timing | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> AsyncGenerator[Piece, None]:
        """Answer the whole conversation's ids; ids the nodes hold KV for already are not sent again.

        Raises:
            ShardhubError: As `Head.answer`; the next turn starts a new session then.
        """
        chain = self._head.chain
        check_prompt(prompt, max_tokens, chain.max_context)
        try:
            if self._session is None:
                self._session = await chain.open(context=chain.max_context, parameters=self._parameters)
            session = self._session
            known = _common_prefix(session.ids, prompt[:-1])
            if session.position != known:
                known = await session.resume(known)
            async with aclosing(
                self._head.continue_session(
                    session, prompt[known:], max_tokens=max_tokens, stops=stops, timing=timing, progress=progress
                )
            ) as pieces:
                async for piece in pieces:
                    yield piece
        except Exception:
            await self.close()
            raise

    async def close(self) -> None:
        """Free the session on every node."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    length = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        length += 1
    return length
