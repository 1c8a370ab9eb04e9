"""`shardhub chat`: a conversation on the terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from shardhub.cli.flags import Debugging, flags
from shardhub.cli.options import (
    LocalFlags,
    NodeFlags,
    PipelineFlags,
    RecoveryFlags,
    SamplingFlags,
    System,
    head_settings,
)
from shardhub.cli.prompts import system_messages
from shardhub.cli.run import print_error
from shardhub.cli.terminal import Terminal, end_answer, note, write_answer
from shardhub.errors import PromptError


@flags("Tokens")
class ChatSamplingFlags(SamplingFlags):
    """The options of one answer, with defaults for a conversation."""

    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 1024
    temp: Annotated[float, typer.Option(help="Temperature; 0 takes the most likely token.", min=0.0)] = 0.7
    top_p: Annotated[
        float, typer.Option(help="Draw from the fewest most likely tokens with this total probability.")
    ] = 0.95


@flags("Prompt")
class SystemFlags:
    """The text before the conversation."""

    system: System = None


def chat(
    pipeline: PipelineFlags,
    opening: SystemFlags,
    nodes: NodeFlags,
    tokens: ChatSamplingFlags,
    recovery: RecoveryFlags,
    local: LocalFlags,
    output: Debugging,
) -> int:
    """Chat with the model. Ctrl-C stops an answer, Ctrl-D ends the chat."""
    from shardhub.usecases.open_head import open_head

    settings = head_settings(pipeline.named("chat"), nodes, local, recovery=recovery)
    sampling = tokens.sampling().with_seed()
    first = system_messages(opening.system)
    messages = list(first)
    with contextlib.suppress(ImportError):  # line editing and history, where Python has it
        import readline  # noqa: F401
    with open_head(settings, Terminal()) as head:
        note("Ctrl-C stops an answer, /new starts over, Ctrl-D ends the chat.")
        while (line := _read_line()) is not None:
            if not line.strip():
                continue
            if line.strip() == "/new":
                messages = list(first)
                continue
            messages.append({"role": "user", "content": line})
            stream = head.stream(messages, sampling)
            try:
                for piece in stream:
                    write_answer(piece.text)
                end_answer()
                note(stream.answer.usage.summary)
            except KeyboardInterrupt:
                stream.close()
                end_answer()
                note("stopped")
            except PromptError as error:
                print_error(error)
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": stream.answer.text})
    return 0


def _read_line() -> str | None:
    """The next line of input; None at its end. Ctrl-C at the prompt discards the line."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                print()
            return None
        except KeyboardInterrupt:
            print()
            note("Ctrl-D ends the chat.")
