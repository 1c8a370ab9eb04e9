"""`shardhub chat`: a conversation on the terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from shardhub.cli.flags import Debugging, flags
from shardhub.cli.options import (
    LocalFlags,
    NodeFlags,
    RecoveryFlags,
    SamplingFlags,
    System,
    head_settings,
)
from shardhub.cli.pipeline_flags import ServedPipelineFlags
from shardhub.cli.prompts import typed_text
from shardhub.cli.terminal import Terminal


@flags("Tokens")
class ChatSamplingFlags(SamplingFlags):
    """The options of one answer, with defaults for a conversation."""

    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 1024
    temp: Annotated[float, typer.Option(help="Temperature; 0 takes the most likely token.", min=0.0)] = 0.7
    top_p: Annotated[
        float, typer.Option(help="Draw from the fewest most likely tokens with this total probability.")
    ] = 0.95


@flags("Prompt")
class ChatFlags:
    """The text before the conversation, and whether questions are remembered."""

    system: System = None
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Neither read nor keep the questions of other chats.")
    ] = False


def chat(
    pipeline: ServedPipelineFlags,
    opening: ChatFlags,
    nodes: NodeFlags,
    tokens: ChatSamplingFlags,
    recovery: RecoveryFlags,
    local: LocalFlags,
    output: Debugging,
) -> int:
    """Chat with the model. Ctrl-C stops an answer, /help lists the commands, Ctrl-D ends the chat."""
    from shardhub.cli.chat.talk import Talk, answer_pipe
    from shardhub.usecases.conversation import Conversation
    from shardhub.usecases.open_head import open_head

    settings = head_settings(pipeline.named_or_up("chat", nodes.tls), nodes, local, recovery=recovery)
    sampling = tokens.sampling()
    system = typed_text(opening.system or "")
    with open_head(settings, Terminal()) as head:
        conversation = Conversation(head, sampling, system=system)
        if sys.stdin.isatty():
            Talk(head, conversation, keeps_history=not opening.no_history).run()
        else:
            answer_pipe(conversation)
    return 0
