"""An answer of a head as it comes: its pieces, and its usage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from shardhub.chain.drafts import prompt_lookup, why_limited
from shardhub.chain.head import Head as ChainHead
from shardhub.chain.head import Piece, Timing
from shardhub.errors import PromptError
from shardhub.setting_checks import check_argument
from shardhub.text.tokenizer import RenderedChat
from shardhub.usecases.answer import Answer, Prompt, Sampling, Usage
from shardhub.usecases.forwarding import prompt_of
from shardhub.usecases.watcher import Watcher


class Collected:
    """Collects an answer as it comes.

    Attributes:
        opening: What the chat template wrote after the last message.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.opening = ""
        check_argument("sampling", sampling, Sampling)
        self._sampling = sampling.with_seed()
        self._timing = Timing()
        self._pieces: list[Piece] = []

    async def run(self, head: ChainHead, prompt: Prompt, watcher: Watcher, *, raw: bool) -> AsyncGenerator[Piece, None]:
        sampling = self._sampling
        if sampling.draft and (why := why_limited(head.chain.rewind_limit, head.capacity.max_context)):
            watcher.note(why)
        rendered = await asyncio.to_thread(_rendered, head, prompt, raw=raw)
        self.opening = rendered.opening
        answer = head.answer(
            rendered.ids,
            sampling.parameters(),
            max_tokens=sampling.max_tokens,
            stops=sampling.stop,
            drafter=prompt_lookup(num_drafts=sampling.draft) if sampling.draft else None,
            timing=self._timing,
            progress=prompt_of(watcher),
        )
        async with aclosing(answer):
            async for piece in answer:
                self._pieces.append(piece)
                yield piece

    def answer(self) -> Answer:
        timing = self._timing
        return Answer(
            text="".join(piece.text for piece in self._pieces),
            tokens=tuple(piece.token for piece in self._pieces if piece.token is not None),
            finish=self._pieces[-1].finish if self._pieces else None,
            seed=self._sampling.seed or 0,
            usage=Usage(
                num_prompt=timing.num_prompt,
                num_reused=timing.num_reused,
                num_generated=timing.num_generated,
                num_drafted=timing.num_drafted,
                num_accepted=timing.num_accepted,
                num_recoveries=timing.num_recoveries,
                is_exact=timing.is_exact,
                first_token_s=timing.first_token_s,
                total_s=timing.total_s,
                tokens_per_s=timing.tokens_per_s,
            ),
        )


def _rendered(head: ChainHead, prompt: Prompt, *, raw: bool) -> RenderedChat:
    """Convert a prompt to token ids, and tell what the chat template wrote last.

    Raises:
        PromptError: The prompt is empty, mixes messages and ids, or a message lacks its role or content.
    """
    if isinstance(prompt, str):
        if raw:
            return RenderedChat(ids=head.tokenizer.encode(prompt), opening="")
        return head.tokenizer.render_chat([{"role": "user", "content": prompt}])
    hint = 'Give text, or messages such as {"role": "user", "content": "Hello"}.'
    parts = prompt if isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray) else None
    ids = [part for part in parts or () if isinstance(part, int) and not isinstance(part, bool)]
    messages = [dict(part) for part in parts or () if isinstance(part, Mapping)]
    if not parts or len(ids) + len(messages) != len(parts) or (ids and messages):
        is_empty = parts is not None and not parts
        why = "It is empty." if is_empty else "It is neither text, nor messages of a chat, nor token ids."
        raise PromptError("The prompt cannot be read.", why=why, hint=hint)
    for index, message in enumerate(messages):
        for field in ("role", "content"):
            # A message that calls tools may have nothing else to say.
            if message.get(field) is None and not (field == "content" and message.get("tool_calls")):
                raise PromptError("The prompt cannot be read.", why=f"Message {index} has no {field}.", hint=hint)
    return RenderedChat(ids=ids, opening="") if ids else head.tokenizer.render_chat(messages)
