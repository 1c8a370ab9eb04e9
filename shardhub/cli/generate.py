"""`shardhub generate`, and what it shares with `chat`."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass

from shardhub.chain.drafts import Drafter, prompt_lookup, why_limited
from shardhub.chain.head import Head, Piece, Timing
from shardhub.errors import PromptError, UsageError
from shardhub.parameters import MAX_SEED, SamplingParameters
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.start_head import HeadOptions, start_head
from shardhub.usecases.terminal import end_answer, note, write_answer

# Prompts from a file or pipe: more text than any model's context holds.
_MAX_PROMPT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """The options that say how tokens are chosen, and when to end.

    Attributes:
        draft: Tokens guessed at once; 0 goes one by one.
    """

    max_tokens: int
    temp: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: tuple[str, ...]
    draft: int = 0

    def drafter(self) -> Drafter | None:
        """What guesses tokens, if that was asked for."""
        return prompt_lookup(num_drafts=self.draft) if self.draft else None

    def parameters(self) -> SamplingParameters:
        """Checked parameters; a seed is drawn where none was given.

        Raises:
            UsageError: One is out of its range.
        """
        return SamplingParameters(
            temperature=self.temp,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=secrets.randbelow(MAX_SEED) if self.seed is None else self.seed,
        )


def generate(
    head_options: HeadOptions,
    sampling: SamplingOptions,
    *,
    prompt: str | None,
    system: str | None,
    raw: bool,
    as_json: bool,
) -> int:
    """Print the answer to one prompt."""
    parameters = sampling.parameters()
    text = _read_prompt(prompt)
    if raw and system is not None:
        raise UsageError("--system is a part of the chat template.", hint="Leave out --raw, or put it in the prompt.")
    with LoopThread() as loop:
        head = start_head(loop, head_options)
        try:
            if raw:
                ids = head.tokenizer.encode(text)
            else:
                messages = ([{"role": "system", "content": typed_text(system)}] if system else []) + [
                    {"role": "user", "content": text}
                ]
                ids = head.tokenizer.render_chat(messages).ids
            note_limits(head, sampling)
            timing = Timing()
            progress = prefill_progress()
            pieces: list[Piece] = []
            answer = head.answer(
                ids,
                parameters,
                max_tokens=sampling.max_tokens,
                stops=sampling.stop,
                drafter=sampling.drafter(),
                timing=timing,
                progress=progress,
            )
            for piece in loop.iterate(answer):
                pieces.append(piece)
                if not as_json:
                    write_answer(piece.text)
            if as_json:
                record = {
                    "text": "".join(piece.text for piece in pieces),
                    "tokens": [piece.token for piece in pieces if piece.token is not None],
                    "finish_reason": pieces[-1].finish,
                    "seed": parameters.seed,
                    "usage": usage(timing),
                    "pipeline_id": head.pipeline.manifest.pipeline_id,
                    "inexact": head.inexact,
                    "stages": head.describe_stages(),
                }
                print(json.dumps(record, ensure_ascii=False))
            else:
                end_answer()
                note(summary(timing))
        finally:
            loop.wait(head.stop())
    return 0


def note_limits(head: Head, sampling: SamplingOptions) -> None:
    """Say why drafts that were asked for do not come, or not always."""
    if sampling.draft and (why := why_limited(head.chain.rewind_limit, head.capacity.max_context)):
        note(why)


def prefill_progress() -> Callable[[int, int], None]:
    """Progress of a long prompt on a terminal; nothing into a pipe."""
    if not sys.stderr.isatty():
        return lambda done, total: None

    def show(done: int, total: int) -> None:
        if total > 256:
            end = "\r" + " " * 40 + "\r" if done == total else ""
            sys.stderr.write(f"\rprompt {done}/{total} tokens{end}")
            sys.stderr.flush()

    return show


def usage(timing: Timing) -> dict[str, float | int]:
    """Sizes in tokens, times in seconds, and whether losses of nodes may have changed a number."""
    return {
        "prompt_tokens": timing.num_prompt,
        "reused_tokens": timing.num_reused,
        "completion_tokens": timing.num_generated,
        "drafted_tokens": timing.num_drafted,
        "accepted_tokens": timing.num_accepted,
        "recoveries": timing.num_recoveries,
        "is_exact": timing.is_exact,
        "time_to_first_token_s": round(timing.first_token_s, 4),
        "total_s": round(timing.total_s, 4),
        "tokens_per_s": round(timing.tokens_per_s, 3),
    }


def summary(timing: Timing) -> str:
    """One line about an answer."""
    reused = f" ({timing.num_reused} of them reused)" if timing.num_reused else ""
    drafts = f", {timing.num_accepted} of {timing.num_drafted} guesses right" if timing.num_drafted else ""
    losses = f", went on after {timing.num_recoveries} loss" if timing.num_recoveries else ""
    losses += "es" if timing.num_recoveries > 1 else ""
    losses += "" if timing.is_exact else " (not bit-exact)"
    return (
        f"{timing.num_prompt} prompt tokens{reused}, {timing.num_generated} generated, "
        f"first after {timing.first_token_s:.2f} s, then {timing.tokens_per_s:.1f} tokens/s{drafts}{losses}"
    )


def _read_prompt(prompt: str | None) -> str:
    if prompt is None and sys.stdin.isatty():
        raise UsageError("There is no prompt.", hint='Give one with --prompt "...", or pipe it in.')
    if prompt is None or prompt == "-":
        data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1)
        if len(data) > _MAX_PROMPT_BYTES:
            raise PromptError(f"The prompt has more than {_MAX_PROMPT_BYTES} bytes.", hint="Shorten it.")
        try:
            prompt = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PromptError("The prompt is not UTF-8 text.", why=f"{error}.") from error
    if not prompt:
        raise PromptError("The prompt is empty.", hint="Give some text.")
    return typed_text(prompt)


def typed_text(text: str) -> str:
    """Text of an option as it was typed: terminals send UTF-8 also where the locale names another encoding.

    Raises:
        PromptError: It is not UTF-8.
    """
    try:
        return os.fsencode(text).decode("utf-8") if any(map(_is_surrogate, text)) else text
    except UnicodeError as error:
        raise PromptError("An option's text is not UTF-8.", why=f"{error}.") from error


def _is_surrogate(character: str) -> bool:
    return 0xD800 <= ord(character) <= 0xDFFF
