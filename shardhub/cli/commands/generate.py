"""Commands that run a model over nodes, for people and for measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardhub.blas import Blas
from shardhub.chain.settings import Recovery
from shardhub.cli.cache import CacheDir
from shardhub.cli.options import (
    BlasOption,
    Debug,
    Draft,
    InsecureLan,
    Json,
    ManifestOption,
    MaxTokens,
    Memory,
    MinP,
    Node,
    NoLocal,
    Penalty,
    PipelineArgument,
    PrefillChunk,
    Recover,
    RecoverWait,
    RequireSignature,
    RunContext,
    Seed,
    Stop,
    System,
    Temp,
    Tls,
    TopK,
    TopP,
)
from shardhub.cli.run import run


def generate(
    pipeline: PipelineArgument = None,
    manifest: ManifestOption = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt; - reads stdin.")] = None,
    node: Node = None,
    system: System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Give the prompt as it is, without the chat template.")] = False,
    max_tokens: MaxTokens = 256,
    temp: Temp = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    draft: Draft = 0,
    recover: Recover = Recovery.EXACT,
    recover_wait: RecoverWait = 60.0,
    prefill_chunk: PrefillChunk = None,
    tls: Tls = None,
    insecure_lan: InsecureLan = False,
    require_signature: RequireSignature = None,
    no_local: NoLocal = False,
    context: RunContext = None,
    memory: Memory = None,
    cache_dir: CacheDir = None,
    blas: BlasOption = Blas.AUTO,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Generate an answer over the nodes; stages nobody serves run here."""
    from shardhub.cli.generate import SamplingOptions
    from shardhub.cli.generate import generate as command
    from shardhub.usecases.start_head import HeadOptions

    head = HeadOptions(
        command="generate",
        pipeline=pipeline,
        manifest=manifest,
        nodes=node,
        no_local=no_local,
        context=context,
        memory=memory,
        cache_dir=cache_dir,
        tls=tls,
        insecure_lan=insecure_lan,
        require_signature=require_signature,
        recovery=recover,
        recover_wait_s=recover_wait,
        prefill_chunk=prefill_chunk,
    )
    sampling = SamplingOptions(
        max_tokens=max_tokens,
        temp=temp,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        draft=draft,
    )
    run(
        lambda: command(head, sampling, prompt=prompt, system=system, raw=raw, as_json=json_),
        debug=debug,
        as_json=json_,
    )


def chat(
    pipeline: PipelineArgument = None,
    manifest: ManifestOption = None,
    node: Node = None,
    system: System = None,
    max_tokens: MaxTokens = 1024,
    temp: Temp = 0.7,
    top_p: TopP = 0.95,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    draft: Draft = 0,
    recover: Recover = Recovery.EXACT,
    recover_wait: RecoverWait = 60.0,
    prefill_chunk: PrefillChunk = None,
    tls: Tls = None,
    insecure_lan: InsecureLan = False,
    require_signature: RequireSignature = None,
    no_local: NoLocal = False,
    context: RunContext = None,
    memory: Memory = None,
    cache_dir: CacheDir = None,
    blas: BlasOption = Blas.AUTO,
    debug: Debug = False,
) -> None:
    """Talk with the model. Ctrl-C stops an answer, Ctrl-D ends the chat."""
    from shardhub.cli.chat import chat as command
    from shardhub.cli.generate import SamplingOptions
    from shardhub.usecases.start_head import HeadOptions

    head = HeadOptions(
        command="chat",
        pipeline=pipeline,
        manifest=manifest,
        nodes=node,
        no_local=no_local,
        context=context,
        memory=memory,
        cache_dir=cache_dir,
        tls=tls,
        insecure_lan=insecure_lan,
        require_signature=require_signature,
        recovery=recover,
        recover_wait_s=recover_wait,
        prefill_chunk=prefill_chunk,
    )
    sampling = SamplingOptions(
        max_tokens=max_tokens,
        temp=temp,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        draft=draft,
    )
    run(lambda: command(head, sampling, system=system), debug=debug)


def bench(
    pipeline: PipelineArgument = None,
    manifest: ManifestOption = None,
    node: Node = None,
    concurrency: Annotated[
        str | None,
        typer.Option(help="Requests side by side; 1,2,4,... up to what the nodes take.", metavar="N,N,..."),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Ids of a prompt.", min=1)] = 128,
    tokens: Annotated[int, typer.Option(help="Tokens of an answer.", min=2)] = 64,
    rounds: Annotated[int, typer.Option(help="Requests each runs, one after the other.", min=1)] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.", min=0)] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw throughput and latency: FILE.png or .svg.")] = None,
    prefill_chunk: PrefillChunk = None,
    tls: Tls = None,
    insecure_lan: InsecureLan = False,
    require_signature: RequireSignature = None,
    no_local: NoLocal = False,
    context: RunContext = None,
    memory: Memory = None,
    cache_dir: CacheDir = None,
    blas: BlasOption = Blas.AUTO,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a live chain: time to first token, inter-token latency, throughput against concurrency.

    Prompts are random ids, decoding is greedy, and no KV is reused.
    """

    from shardhub.cli.bench import bench as command
    from shardhub.usecases.bench import BenchOptions
    from shardhub.usecases.start_head import HeadOptions

    head = HeadOptions(
        command="bench",
        pipeline=pipeline,
        manifest=manifest,
        nodes=node,
        no_local=no_local,
        context=context,
        memory=memory,
        cache_dir=cache_dir,
        tls=tls,
        insecure_lan=insecure_lan,
        require_signature=require_signature,
        prefill_chunk=prefill_chunk,
    )
    options = BenchOptions(
        concurrency=concurrency,
        num_prompt=prompt_tokens,
        num_tokens=tokens,
        num_rounds=rounds,
        seed=seed,
        plot=plot,
    )
    run(lambda: command(head, options, as_json=json_), debug=debug, as_json=json_)
