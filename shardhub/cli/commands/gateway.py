"""The command that answers clients over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import (
    AllowSleep,
    LocalFlags,
    Node,
    NodeFlags,
    PipelineFlags,
    RecoveryFlags,
    RequireSignature,
    Tls,
    head_settings,
)
from shardhub.gateway.settings import ReasoningField


@flags("Pipeline")
class DemoFlags:
    """A demo model to serve."""

    demo: Annotated[bool, typer.Option("--demo", help="Serve a small model that is fetched and split here.")] = False


@flags("Clients")
class ClientFlags:
    """Where the gateway listens, and who may call it."""

    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8080
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Digests of the accepted API keys; also SHARDHUB_API_KEY.", metavar="FILE"),
    ] = None
    new_key: Annotated[
        Path | None, typer.Option(help="Print a new key, add its digest to FILE, and exit.", metavar="FILE")
    ] = None
    insecure_lan: Annotated[
        bool, typer.Option("--insecure-lan", help="Listen off loopback without a key, on a network you trust.")
    ] = False
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Further host name under which clients may call.", metavar="NAME")
    ] = None
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Web origin that may call from a browser.", metavar="https://HOST[:PORT]")
    ] = None


@flags("Answers")
class AnswerFlags:
    """How clients are answered."""

    model_name: Annotated[
        list[str] | None,
        typer.Option(help="Name of the model for clients; may be given several times; * takes any name."),
    ] = None
    reasoning_field: Annotated[
        ReasoningField, typer.Option(help="Field of a chat message that holds the model's reasoning.")
    ] = ReasoningField.REASONING_CONTENT
    max_queue: Annotated[int, typer.Option(help="Most waiting requests; more are refused at once.", min=0)] = 64
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Limit of an answer if a request sets none; by default the rest of the context.", min=1),
    ] = None
    strict_limits: Annotated[
        bool, typer.Option("--strict-limits", help="Refuse max_tokens beyond the context instead of reducing it.")
    ] = False
    strict_content: Annotated[
        bool, typer.Option("--strict-content", help="Refuse images and other non-text parts.")
    ] = False
    shutdown_timeout: Annotated[float, typer.Option(help="Seconds a drain waits for answers.", min=0)] = 30.0
    allow_sleep: AllowSleep = False


@flags("Nodes")
class GatewayNodeFlags:
    """The nodes, and how they are reached; the gateway's `--insecure-lan` concerns clients."""

    node: Node = None
    tls: Tls = None
    insecure_nodes: Annotated[
        bool,
        typer.Option("--insecure-nodes", help="Reach nodes on other machines without TLS, on a network you trust."),
    ] = False
    require_signature: RequireSignature = None


def gateway(
    pipeline: PipelineFlags,
    showing: DemoFlags,
    clients: ClientFlags,
    answers: AnswerFlags,
    nodes: GatewayNodeFlags,
    recovery: RecoveryFlags,
    local: LocalFlags,
    output: Output,
) -> int:
    """Serve an OpenAI-compatible API over the nodes until SIGTERM; prints its URL when ready."""
    from shardhub.cli.gateway import GatewayOptions, make_key
    from shardhub.cli.gateway import gateway as command

    if clients.new_key is not None:
        return make_key(clients.new_key)
    is_named = pipeline.pipeline is not None or pipeline.manifest is not None
    head = head_settings(
        pipeline.named("gateway") if is_named or not showing.demo else "",
        NodeFlags(
            node=nodes.node,
            tls=nodes.tls,
            insecure_lan=nodes.insecure_nodes,
            require_signature=nodes.require_signature,
        ),
        local,
        recovery=recovery,
        insecure_flag="`insecure_nodes`",
    )
    options = GatewayOptions(
        demo=showing.demo,
        host=clients.host,
        port=clients.port,
        insecure_lan=clients.insecure_lan,
        api_key_file=clients.api_key_file,
        names=tuple(clients.allow_host or ()),
        origins=tuple(clients.cors_origin or ()),
        model_names=tuple(answers.model_name or ()),
        reasoning_field=answers.reasoning_field,
        max_queue=answers.max_queue,
        max_tokens=answers.max_tokens,
        shutdown_timeout_s=answers.shutdown_timeout,
        allow_sleep=answers.allow_sleep,
        strict_limits=answers.strict_limits,
        strict_content=answers.strict_content,
    )
    return command(head, options, as_json=output.as_json)
