"""Teacher forcing: feed known ids to a chain to see which tokens it would have chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shardhub.chain.chain import Chain
from shardhub.parameters import SamplingParameters
from shardhub.protocol import Lane


async def greedy_choices(
    chain: Chain,
    prompt: Sequence[int],
    known: Sequence[int],
    *,
    chunk: int,
    progress: Callable[[], None] = lambda: None,
) -> list[int]:
    """Return the greedy token after the prompt, and after each of the known ids but the last.

    The shapes are those of a parity record: chunks of the prompt without its last id, then steps of one id.

    Args:
        chain: Live stages.
        prompt: Token ids, at least two.
        known: Ids that follow the prompt; the chain is fed these, whatever it chooses.
        chunk: Most prompt ids of a step.
        progress: Called after every token.

    Raises:
        ChainError, ContextExceeded: A stage failed or has no room.
    """
    session = await chain.open(context=len(prompt) + len(known), parameters=SamplingParameters())
    try:
        *head, last = prompt
        for at in range(0, len(head), chunk):
            await (await session.send(head[at : at + chunk], sample=False, lane=Lane.PREFILL))
        chosen: list[int] = []
        lane = Lane.PREFILL
        for token in (last, *known[:-1]):
            row = await (await session.send([token], sample=True, lane=lane))
            assert row.token is not None
            chosen.append(row.token)
            progress()
            lane = Lane.DECODE
        return chosen
    finally:
        await session.close()
