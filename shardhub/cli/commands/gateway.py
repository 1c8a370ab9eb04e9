"""The command that answers clients over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardhub.blas import Blas
from shardhub.chain.settings import Recovery
from shardhub.cli.cache import CacheDir
from shardhub.cli.options import (
    AllowSleep,
    BlasOption,
    Debug,
    Json,
    ManifestOption,
    Memory,
    Node,
    NoLocal,
    PipelineArgument,
    PrefillChunk,
    Recover,
    RecoverWait,
    RequireSignature,
    RunContext,
    Tls,
)
from shardhub.cli.run import run
from shardhub.gateway.settings import ReasoningField


def gateway(
    pipeline: PipelineArgument = None,
    manifest: ManifestOption = None,
    node: Node = None,
    demo: Annotated[bool, typer.Option("--demo", help="Serve a small model that is fetched and split here.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8080,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Digests of the keys that clients must have; also SHARDHUB_API_KEY.", metavar="FILE"),
    ] = None,
    new_key: Annotated[
        Path | None, typer.Option(help="Print a new key, add its digest to FILE, and end.", metavar="FILE")
    ] = None,
    insecure_lan: Annotated[
        bool, typer.Option("--insecure-lan", help="Listen off loopback without a key, on a network you trust.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name by which clients may call, besides the address.", metavar="NAME")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Page that may call from a browser.", metavar="https://HOST[:PORT]")
    ] = None,
    model_name: Annotated[
        list[str] | None,
        typer.Option(help="Name of the model for clients; may be given several times; * takes any name."),
    ] = None,
    reasoning_field: Annotated[
        ReasoningField, typer.Option(help="Field of a chat's message that holds what the model thinks.")
    ] = ReasoningField.REASONING_CONTENT,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; more are refused at once.", min=0)] = 64,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Of an answer, where a request does not say; by default the rest of the context.", min=1),
    ] = None,
    strict_limits: Annotated[
        bool, typer.Option("--strict-limits", help="Refuse max_tokens beyond the context, instead of cutting them.")
    ] = False,
    strict_content: Annotated[
        bool, typer.Option("--strict-content", help="Refuse images and other parts that are not text.")
    ] = False,
    shutdown_timeout: Annotated[float, typer.Option(help="Seconds a drain waits for answers.", min=0)] = 30.0,
    allow_sleep: AllowSleep = False,
    recover: Recover = Recovery.EXACT,
    recover_wait: RecoverWait = 60.0,
    prefill_chunk: PrefillChunk = None,
    tls: Tls = None,
    insecure_nodes: Annotated[
        bool,
        typer.Option("--insecure-nodes", help="Reach nodes on other machines without TLS, on a network you trust."),
    ] = False,
    require_signature: RequireSignature = None,
    no_local: NoLocal = False,
    context: RunContext = None,
    memory: Memory = None,
    cache_dir: CacheDir = None,
    blas: BlasOption = Blas.AUTO,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Serve an OpenAI-compatible API over the nodes until SIGTERM; prints its URL when it is ready."""
    from shardhub.cli.gateway import GatewayOptions, make_key
    from shardhub.cli.gateway import gateway as command
    from shardhub.usecases.start_head import HeadOptions

    if new_key is not None:
        run(lambda: make_key(new_key), debug=debug, as_json=json_)
    head = HeadOptions(
        command="gateway",
        pipeline=pipeline,
        manifest=manifest,
        nodes=node,
        no_local=no_local,
        context=context,
        memory=memory,
        cache_dir=cache_dir,
        tls=tls,
        insecure_lan=insecure_nodes,
        insecure_flag="--insecure-nodes",
        require_signature=require_signature,
        recovery=recover,
        recover_wait_s=recover_wait,
        prefill_chunk=prefill_chunk,
    )
    options = GatewayOptions(
        demo=demo,
        host=host,
        port=port,
        insecure_lan=insecure_lan,
        api_key_file=api_key_file,
        names=tuple(allow_host or ()),
        origins=tuple(cors_origin or ()),
        model_names=tuple(model_name or ()),
        reasoning_field=reasoning_field,
        max_queue=max_queue,
        max_tokens=max_tokens,
        shutdown_timeout_s=shutdown_timeout,
        allow_sleep=allow_sleep,
        strict_limits=strict_limits,
        strict_content=strict_content,
    )
    run(lambda: command(head, options, as_json=json_), debug=debug, as_json=json_)
