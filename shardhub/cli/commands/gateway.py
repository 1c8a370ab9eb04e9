"""`shardhub gateway`: the HTTP API over a chain."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import (
    AllowSleep,
    LocalFlags,
    Node,
    NodeFlags,
    RecoveryFlags,
    RequireSignature,
    Tls,
    head_settings,
)
from shardhub.cli.signals import on_signals
from shardhub.cli.streams import announce
from shardhub.cli.terminal import Terminal, note
from shardhub.errors import UsageError
from shardhub.gateway.settings import ReasoningField

if TYPE_CHECKING:
    from shardhub.gateway.settings import GatewaySettings
    from shardhub.usecases.chains_up import ChainSource
    from shardhub.usecases.start_head import HeadSettings


_CUT_SHORT = 143


@flags("Pipelines")
class GatewayPipelineFlags:
    """The pipelines to serve: those given, or a demo model; without any, those that are up in the cluster."""

    pipeline: Annotated[
        list[str] | None,
        typer.Argument(metavar="PIPELINE...", help="Pipelines: Hub ids ORG/NAME[@REVISION], or folders."),
    ] = None
    manifest: Annotated[list[str] | None, typer.Option("--manifest", help="The same, as an option; repeatable.")] = None
    demo: Annotated[bool, typer.Option("--demo", help="Serve a small model that is fetched and split here.")] = False

    def named(self) -> list[str]:
        """The folders and Hub ids of pipelines that are given, each once."""
        return list(dict.fromkeys([*(self.pipeline or ()), *(self.manifest or ())]))


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
        list[str] | None,
        typer.Option(help="Further host name under which clients may call; repeatable.", metavar="NAME"),
    ] = None
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Web origin that may call from a browser; repeatable.", metavar="ORIGIN")
    ] = None


@flags("Answers")
class AnswerFlags:
    """How clients are answered."""

    model_name: Annotated[
        list[str] | None,
        typer.Option(help="Name for clients, if one model is served; repeatable; * takes any name."),
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
    shutdown_timeout: Annotated[
        float, typer.Option(help="Seconds to wait for answers to end when the gateway is stopped.", min=0)
    ] = 30.0
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
    pipelines: GatewayPipelineFlags,
    clients: ClientFlags,
    answers: AnswerFlags,
    nodes: GatewayNodeFlags,
    recovery: RecoveryFlags,
    local: LocalFlags,
    output: Output,
) -> int:
    """Serve an OpenAI-compatible API over the nodes until SIGTERM; prints its URL when ready."""
    from shardhub.gateway.keys import read_keys
    from shardhub.gateway.settings import GatewaySettings
    from shardhub.usecases.demo_chain import demo_chain

    if clients.new_key is not None:
        return _make_key(clients.new_key)
    named = pipelines.named()
    head = head_settings(
        "",
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
    if pipelines.demo and (named or head.nodes):
        raise UsageError("--demo starts its own pipeline and nodes.", hint="Give either --demo or a pipeline.")
    settings = GatewaySettings(
        host=clients.host,
        port=clients.port,
        insecure_lan=clients.insecure_lan,
        keys=read_keys(clients.api_key_file),
        names=tuple(clients.allow_host or ()),
        origins=tuple(clients.cors_origin or ()),
        model_names=tuple(answers.model_name or ()),
        reasoning_fields=answers.reasoning_field.names,
        max_queue=answers.max_queue,
        max_tokens=answers.max_tokens,
        shutdown_timeout_s=answers.shutdown_timeout,
        strict_limits=answers.strict_limits,
        strict_content=answers.strict_content,
    )
    serve = partial(_serve, settings=settings, allow_sleep=answers.allow_sleep, as_json=output.as_json)
    if named:
        return serve([replace(head, pipeline=text, mixed_nodes=len(named) > 1) for text in named])
    if not pipelines.demo:
        return serve(_up_in_cluster(head, nodes.tls))
    with demo_chain(Terminal()) as chain:
        return serve([replace(head, pipeline=str(chain.pipeline), nodes=chain.addresses, allow_local=False)])


def _up_in_cluster(head: HeadSettings, tls: Path | None) -> ChainSource:
    """What is up in this machine's cluster.

    Raises:
        UsageError: Nodes are named, or no resident runs here.
    """
    from shardhub.usecases.cluster_chains import ClusterChains
    from shardhub.usecases.cluster_place import ClusterPlace

    if head.nodes:
        raise UsageError(
            "Nodes are given, but no pipeline.",
            hint="Give the pipeline too, or leave out --node to serve what is up in the cluster.",
        )
    return ClusterChains(head, ClusterPlace(tls=tls))


def _make_key(file: Path) -> int:
    """Print a new API key, once, and add its digest to a file."""
    from shardhub.gateway.keys import new_key

    print(new_key(file))
    note(f"its digest was added to {file}; start the gateway with --api-key-file {file}")
    return 0


def _serve(
    heads: list[HeadSettings] | ChainSource, *, settings: GatewaySettings, allow_sleep: bool, as_json: bool
) -> int:
    """Serve the API until a signal arrives."""
    from shardhub.usecases.open_gateway import open_gateway

    # One signal finishes what is on its way, a second one ends it at once.
    with (
        open_gateway(heads, settings, Terminal(), allow_sleep=allow_sleep) as running,
        on_signals(lambda _: running.stop()),
    ):
        facts = running.facts
        if as_json:
            record = {
                "url": facts.url,
                "model": facts.model_name,
                "models": facts.model_names,
                "context": facts.context,
                "keys": facts.num_keys,
                "inexact": facts.inexact,
            }
            announce(json.dumps(record))
        else:
            announce(f"{', '.join(facts.model_names)}: {facts.url}/v1")
            key = ", with a key as the password," if facts.num_keys else ""
            note(f"open {facts.url}/ in a browser{key} to chat and to watch the chain; Ctrl+C stops the gateway")
        running.wait()
    return _CUT_SHORT if running.was_cut_short else 0
