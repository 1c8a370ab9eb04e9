"""Prefill: a prompt travels through the chain in chunks, several of them in flight at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from shardhub.chain.chain import Chain
from shardhub.chain.pace import Pace
from shardhub.chain.stream import Stream
from shardhub.limits import MAX_SCORED
from shardhub.protocol import Lane, RowResult

# Chunks of one prompt in flight beyond one for each stage.
_CHUNKS_AHEAD = 1


class Prefill:
    """Sends prompts through a chain.

    Args:
        chain: Live stages.
        pace: Sizes the chunks.
        is_awaited: Returns whether any stream waits for decode steps.
        may_join: Returns whether a prompt's last id may travel with other streams' decode step.
        at_mark: Called when all stages hold a prompt up to a mark.
    """

    def __init__(
        self,
        chain: Chain,
        pace: Pace,
        *,
        is_awaited: Callable[[], bool],
        may_join: Callable[[Stream], bool],
        at_mark: Callable[[Stream], Awaitable[None]],
    ) -> None:
        self._chain = chain
        self._pace = pace
        self._is_awaited = is_awaited
        self._may_join = may_join
        self._at_mark = at_mark

    async def run(self, stream: Stream, *, marks: Sequence[int] = ()) -> None:
        """Send the prompt's ids, several chunks in flight at once, and draw the first token.

        All ids but the last travel in chunks for which no logits are computed. The last is a decode step of its own,
        in the shapes of mlx_lm's generate_step, so that the numbers are the same. If it may join other streams' decode
        step, it is left to that one, which saves a step in which every stage reads its weights.

        Args:
            marks: Ascending positions at which a chunk ends, and all stages are waited for.
        """
        session, request = stream.session, stream.request
        num_prompt = len(request.prompt)
        waiting: deque[asyncio.Future[RowResult]] = deque()
        most = self._chain.num_stages + _CHUNKS_AHEAD
        at = done = session.position
        sizes: deque[int] = deque()
        ahead = deque(marks)

        def went_through(result: RowResult) -> None:
            nonlocal done
            waiting.popleft()
            done += sizes.popleft()
            stream.made_progress()
            stream.prompt_logprobs += result.target_logprobs
            stream.prompt_top += result.target_top
            request.progress(done, num_prompt)

        try:
            while (left := num_prompt - 1 - at) > 0 and not stream.is_done:
                others = self._is_awaited()
                size = self._pace.chunk(left, num_prompt, others=others)
                size = min(size, MAX_SCORED) if request.score else size
                size = min(size, ahead[0] - at) if ahead else size
                chunk = request.prompt[at : at + size]
                targets = request.prompt[at + 1 : at + size + 1] if request.score else ()
                waiting.append(await session.send(chunk, sample=False, lane=Lane.PREFILL, targets=targets))
                sizes.append(size)
                at += size
                while len(waiting) >= most or (waiting and waiting[0].done()):
                    went_through(await waiting[0])
                if ahead and at == ahead[0]:
                    ahead.popleft()
                    while waiting:
                        went_through(await waiting[0])
                    await self._at_mark(stream)
            if stream.is_done:
                return
            if self._may_join(stream):
                while waiting:  # decode steps use another lane, so all stages must hold the prompt first
                    went_through(await waiting[0])
                request.progress(num_prompt, num_prompt)
                return
            mask = request.grammar.mask if request.grammar is not None else None
            final = await session.send([request.prompt[-1]], sample=True, lane=Lane.PREFILL, mask=mask)
            while waiting:
                went_through(await waiting[0])
            stream.take(await final, 1)
            request.progress(num_prompt, num_prompt)
        finally:
            for future in waiting:
                future.cancel()
