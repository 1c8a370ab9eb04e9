"""The commands that run a model over nodes: generate, chat and bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardhub.cli.flags import Debugging, Output, flags
from shardhub.cli.options import (
    LocalFlags,
    NodeFlags,
    PipelineFlags,
    PrefillChunk,
    RecoveryFlags,
    SamplingFlags,
    System,
    head_settings,
)


@flags("Prompt")
class PromptFlags:
    """The prompt."""

    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt; - reads stdin.")] = None
    system: System = None
    raw: Annotated[bool, typer.Option("--raw", help="Send the prompt as it is, without the chat template.")] = False


def generate(
    pipeline: PipelineFlags,
    prompt: PromptFlags,
    nodes: NodeFlags,
    tokens: SamplingFlags,
    recovery: RecoveryFlags,
    local: LocalFlags,
    output: Output,
) -> int:
    """Generate an answer over the nodes; stages that no node serves run here."""
    from shardhub.cli.generate import generate as command

    return command(
        head_settings(pipeline.named("generate"), nodes, local, recovery=recovery),
        tokens.sampling(),
        prompt=prompt.prompt,
        system=prompt.system,
        raw=prompt.raw,
        as_json=output.as_json,
    )


@flags("Tokens")
class ChatSamplingFlags(SamplingFlags):
    """The options of one answer, with defaults for a conversation."""

    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 1024
    temp: Annotated[float, typer.Option(help="Temperature; 0 takes the most likely token.", min=0.0)] = 0.7
    top_p: Annotated[float, typer.Option(help="Keep the most likely tokens with this mass.")] = 0.95


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
    from shardhub.cli.chat import chat as command

    return command(
        head_settings(pipeline.named("chat"), nodes, local, recovery=recovery), tokens.sampling(), system=opening.system
    )


@flags("What is measured")
class BenchFlags:
    """What is measured, and how often."""

    concurrency: Annotated[
        str | None,
        typer.Option(help="Levels of concurrent requests; 1,2,4,... up to what the nodes take.", metavar="N,N,..."),
    ] = None
    prompt_tokens: Annotated[int, typer.Option(help="Ids of a prompt.", min=1)] = 128
    tokens: Annotated[int, typer.Option(help="Tokens of an answer.", min=2)] = 64
    rounds: Annotated[int, typer.Option(help="Requests of each client, one after the other.", min=1)] = 2
    seed: Annotated[int, typer.Option(help="Seed of the prompts.", min=0)] = 0
    plot: Annotated[Path | None, typer.Option(help="Draw throughput and latency: FILE.png or .svg.")] = None
    prefill_chunk: PrefillChunk = None


def bench(pipeline: PipelineFlags, measured: BenchFlags, nodes: NodeFlags, local: LocalFlags, output: Output) -> int:
    """Measure a live chain: time to first token, inter-token latency, and throughput against concurrency.

    Prompts are random ids, decoding is greedy, and no KV is reused.
    """
    from shardhub.cli.bench import bench as command
    from shardhub.usecases.bench import BenchOptions

    options = BenchOptions(
        concurrency=measured.concurrency,
        num_prompt=measured.prompt_tokens,
        num_tokens=measured.tokens,
        num_rounds=measured.rounds,
        seed=measured.seed,
        plot=measured.plot,
    )
    recovery = RecoveryFlags(prefill_chunk=measured.prefill_chunk)
    head = head_settings(pipeline.named("bench"), nodes, local, recovery=recovery)
    return command(head, options, as_json=output.as_json)
