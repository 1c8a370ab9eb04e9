"""From prompt ids to token ids, over a chain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass

from shardhub.chain.chain import Chain
from shardhub.chain.session import ChainSession
from shardhub.errors import ContextExceeded, PromptError
from shardhub.protocol import Lane, RowResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A generated token.

    Attributes:
        id: Its id.
        logprob: Log probability before temperature and filters.
        is_end: It is one of the end-of-sequence ids.
    """

    id: int
    logprob: float
    is_end: bool


def check_prompt(ids: Sequence[int], max_tokens: int, max_context: int) -> int:
    """Positions a session needs for a prompt and its answer.

    Raises:
        PromptError: The prompt is empty.
        ContextExceeded: It does not leave room for a single token.
    """
    if not ids:
        raise PromptError("The prompt is empty.", hint="Give some text.")
    if len(ids) + 1 > max_context:
        raise ContextExceeded(
            f"The prompt has {len(ids)} tokens.",
            why=f"The chain's context is {max_context} positions, answer included.",
            hint="Shorten it, or start the nodes with a larger --context.",
        )
    return min(len(ids) + max_tokens, max_context)


async def prefill(
    chain: Chain,
    session: ChainSession,
    ids: Sequence[int],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Token:
    """Send a prompt's ids, several chunks at once on their way, and draw the first token.

    All but the last id go in chunks whose logits nobody computes; the last one is a decode step of its own, in the
    shapes mlx_lm's generate_step uses, so that the numbers are the same.

    Returns:
        The first token, its `is_end` not set.
    """
    *head, last = ids
    chunks = [head[at : at + chain.max_chunk] for at in range(0, len(head), chain.max_chunk)]
    done = 0
    waiting: list[asyncio.Future[RowResult]] = []
    try:
        for chunk in chunks:
            sent = await session.send(chunk, sample=False, lane=Lane.PREFILL)
            waiting.append(sent)
        final = await session.send([last], sample=True, lane=Lane.PREFILL)
        for chunk, future in zip(chunks, waiting, strict=True):
            await future
            done += len(chunk)
            progress(done, len(ids))
        row = await final
    finally:
        for future in waiting:
            future.cancel()
    progress(len(ids), len(ids))
    assert row.token is not None
    return Token(id=row.token, logprob=row.logprob, is_end=False)


async def generate(
    chain: Chain,
    session: ChainSession,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    end_ids: Collection[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AsyncGenerator[Token, None]:
    """Generate tokens one by one; the end token, if it comes, is the last and marked.

    Args:
        session: Open, at the position where `prompt` begins.
        prompt: Ids that the session has not seen.
        max_tokens: Most tokens.
        end_ids: Ids that end the sequence.
        progress: Told of prompt ids done and in all.

    Raises:
        ShardhubError: A stage failed.
    """
    token = await prefill(chain, session, prompt, progress=progress)
    for index in range(max_tokens):
        is_end = token.id in end_ids
        yield Token(id=token.id, logprob=token.logprob, is_end=is_end)
        if is_end or index == max_tokens - 1 or session.position >= session.context:
            return
        row = await (await session.send([token.id], sample=True, lane=Lane.DECODE))
        assert row.token is not None
        token = Token(id=row.token, logprob=row.logprob, is_end=False)
