"""`shardhub generate`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import (
    LocalFlags,
    NodeFlags,
    RecoveryFlags,
    SamplingFlags,
    System,
    head_settings,
)
from shardhub.cli.pipeline_flags import ServedPipelineFlags
from shardhub.cli.prompts import system_messages, typed_text
from shardhub.cli.terminal import Terminal, end_answer, note, write_answer
from shardhub.errors import PromptError, UsageError

if TYPE_CHECKING:
    from shardhub.usecases.answer import HeadStatus, Prompt, Usage


# Largest prompt from a file or pipe: more text than any model's context holds.
_MAX_PROMPT_BYTES = 16 << 20


@flags("Prompt")
class PromptFlags:
    """The prompt."""

    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt; - reads stdin.")] = None
    system: System = None
    raw: Annotated[bool, typer.Option("--raw", help="Send the prompt as it is, without the chat template.")] = False


def generate(
    pipeline: ServedPipelineFlags,
    prompt: PromptFlags,
    nodes: NodeFlags,
    tokens: SamplingFlags,
    recovery: RecoveryFlags,
    local: LocalFlags,
    output: Output,
) -> int:
    """Generate an answer over the nodes; stages that no node serves run here."""
    from shardhub.usecases.open_head import open_head

    settings = head_settings(pipeline.named_or_up("generate", nodes.tls), nodes, local, recovery=recovery)
    sampling = tokens.sampling()
    text = _read_prompt(prompt.prompt)
    if prompt.raw and prompt.system is not None:
        raise UsageError(
            "--system needs the chat template, which --raw leaves out.",
            hint="Leave out --raw, or put the text into the prompt.",
        )
    question: Prompt = text
    if not prompt.raw:
        question = [*system_messages(prompt.system), {"role": "user", "content": text}]
    with open_head(settings, Terminal()) as head:
        stream = head.stream(question, sampling, raw=prompt.raw)
        for piece in stream:
            if not output.as_json:
                write_answer(piece.text)
        answer = stream.answer
        if output.as_json:
            status = head.status()
            record = {
                "text": answer.text,
                "tokens": list(answer.tokens),
                "finish_reason": answer.finish,
                "seed": answer.seed,
                "usage": _usage_record(answer.usage),
                "pipeline_id": status.pipeline_id,
                "inexact": status.inexact,
                "stages": _stage_records(status),
            }
            print(json.dumps(record, ensure_ascii=False))
        else:
            end_answer()
            note(answer.usage.summary)
    return 0


def _usage_record(usage: Usage) -> dict[str, float | int]:
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


def _stage_records(status: HeadStatus) -> list[dict[str, object]]:
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


def _read_prompt(prompt: str | None) -> str:
    if prompt is None and sys.stdin.isatty():
        raise UsageError("No prompt was given.", hint='Give one with --prompt "...", or pipe it in.')
    if prompt is None or prompt == "-":
        data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1)
        if len(data) > _MAX_PROMPT_BYTES:
            raise PromptError(f"The prompt has more than {_MAX_PROMPT_BYTES} bytes.", hint="Shorten the prompt.")
        try:
            prompt = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PromptError("The prompt is not UTF-8 text.", why=f"{error}.") from error
    if not prompt:
        raise PromptError("The prompt is empty.", hint="Give a prompt with some text.")
    return typed_text(prompt)
