"""`shardhub generate`, and the functions it shares with `chat`."""

from __future__ import annotations

import json
import os
import sys

from shardhub.cli.terminal import Terminal, end_answer, note, write_answer
from shardhub.errors import PromptError, UsageError
from shardhub.usecases.answer import HeadStatus, Prompt, Sampling, Usage
from shardhub.usecases.open_head import open_head
from shardhub.usecases.start_head import HeadSettings

# Largest prompt from a file or pipe: more text than any model's context holds.
_MAX_PROMPT_BYTES = 16 << 20


def generate(
    settings: HeadSettings,
    sampling: Sampling,
    *,
    prompt: str | None,
    system: str | None,
    raw: bool,
    as_json: bool,
) -> int:
    """Print the answer to one prompt."""
    sampling.parameters()  # values out of range are refused before anything is started
    text = _read_prompt(prompt)
    if raw and system is not None:
        raise UsageError("--system is a part of the chat template.", hint="Leave out --raw, or put it in the prompt.")
    asked: Prompt = text
    if not raw:
        asked = [*system_messages(system), {"role": "user", "content": text}]
    with open_head(settings, Terminal()) as head:
        stream = head.stream(asked, sampling, raw=raw)
        for piece in stream:
            if not as_json:
                write_answer(piece.text)
        answer = stream.answer
        if as_json:
            status = head.status()
            record = {
                "text": answer.text,
                "tokens": list(answer.tokens),
                "finish_reason": answer.finish,
                "seed": answer.seed,
                "usage": usage_record(answer.usage),
                "pipeline_id": status.pipeline_id,
                "inexact": status.inexact,
                "stages": stage_records(status),
            }
            print(json.dumps(record, ensure_ascii=False))
        else:
            end_answer()
            note(summary(answer.usage))
    return 0


def system_messages(system: str | None) -> list[dict[str, str]]:
    """The system prompt as the first message, if there is one."""
    return [{"role": "system", "content": typed_text(system)}] if system else []


def usage_record(usage: Usage) -> dict[str, float | int]:
    """Usage as JSON-able data: sizes in tokens, times in seconds, and whether losses may have changed a number."""
    return {
        "prompt_tokens": usage.num_prompt,
        "reused_tokens": usage.num_reused,
        "completion_tokens": usage.num_generated,
        "drafted_tokens": usage.num_drafted,
        "accepted_tokens": usage.num_accepted,
        "recoveries": usage.num_recoveries,
        "is_exact": usage.is_exact,
        "time_to_first_token_s": round(usage.first_token_s, 4),
        "total_s": round(usage.total_s, 4),
        "tokens_per_s": round(usage.tokens_per_s, 3),
    }


def stage_records(status: HeadStatus) -> list[dict[str, object]]:
    """Where each stage runs, as JSON-able data."""
    records = []
    for stages in status.stages:
        record: dict[str, object] = {
            "stages": list(stages.stages),
            "layers": list(stages.layers),
            "at": stages.at,
            "next": stages.next,
        }
        if stages.round_trip_s is not None:
            record |= {"round_trip_s": stages.round_trip_s, "bytes_per_s": stages.bytes_per_s}
        records.append(record)
    return records


def summary(usage: Usage) -> str:
    """Summarise an answer's usage in one line."""
    reused = f" ({usage.num_reused} of them reused)" if usage.num_reused else ""
    drafts = f", {usage.num_accepted} of {usage.num_drafted} guesses right" if usage.num_drafted else ""
    losses = f", went on after {usage.num_recoveries} loss" if usage.num_recoveries else ""
    losses += "es" if usage.num_recoveries > 1 else ""
    losses += "" if usage.is_exact else " (not bit-exact)"
    return (
        f"{usage.num_prompt} prompt tokens{reused}, {usage.num_generated} generated, "
        f"first after {usage.first_token_s:.2f} s, then {usage.tokens_per_s:.1f} tokens/s{drafts}{losses}"
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
    """Decode an option's text as it was typed: terminals send UTF-8 even if the locale names another encoding.

    Raises:
        PromptError: It is not UTF-8.
    """
    try:
        return os.fsencode(text).decode("utf-8") if any(map(_is_surrogate, text)) else text
    except UnicodeError as error:
        raise PromptError("An option's text is not UTF-8.", why=f"{error}.") from error


def _is_surrogate(character: str) -> bool:
    return 0xD800 <= ord(character) <= 0xDFFF
