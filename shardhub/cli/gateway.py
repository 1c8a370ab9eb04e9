"""`shardhub gateway`: the HTTP API over a chain."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from shardhub.chain.head import Head
from shardhub.cli.demo_chain import demo_chain
from shardhub.cli.streams import announce
from shardhub.cli.terminal import Terminal, note
from shardhub.errors import ChainError, UsageError
from shardhub.gateway.keys import new_key, read_keys
from shardhub.gateway.server import Gateway, check_host, listening
from shardhub.gateway.settings import GatewaySettings, ReasoningField
from shardhub.gateway.waiting import Waiting
from shardhub.usecases.awake import awake
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.start_head import HeadSettings, Starting

_CUT_SHORT = 143
# Seconds between attempts to start while nodes are missing.
_BETWEEN_STARTS_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """The options of `gateway` as given."""

    demo: bool
    host: str
    port: int
    insecure_lan: bool
    api_key_file: Path | None
    names: tuple[str, ...]
    origins: tuple[str, ...]
    model_names: tuple[str, ...]
    reasoning_field: ReasoningField
    max_queue: int
    max_tokens: int | None
    shutdown_timeout_s: float
    allow_sleep: bool = False
    strict_limits: bool = False
    strict_content: bool = False


def make_key(file: Path) -> int:
    """Print a new API key, once, and add its digest to a file."""
    print(new_key(file))
    note(f"its digest was added to {file}; start the gateway with --api-key-file {file}")
    return 0


def gateway(head_options: HeadSettings, options: GatewayOptions, *, as_json: bool) -> int:
    """Serve the API until a signal arrives."""
    if not options.demo:
        return _gateway(head_options, options, as_json=as_json)
    if head_options.pipeline or head_options.nodes:
        raise UsageError("--demo brings a pipeline and nodes of its own.", hint="Give either, not both.")
    with demo_chain() as chain:
        head_options = replace(head_options, pipeline=str(chain.pipeline), nodes=chain.addresses, allow_local=False)
        return _gateway(head_options, options, as_json=as_json)


def _gateway(head_options: HeadSettings, options: GatewayOptions, *, as_json: bool) -> int:
    settings = GatewaySettings(
        host=options.host,
        port=options.port,
        insecure_lan=options.insecure_lan,
        keys=read_keys(options.api_key_file),
        names=options.names,
        origins=options.origins,
        model_names=options.model_names,
        reasoning_fields=options.reasoning_field.names,
        max_queue=options.max_queue,
        max_tokens=options.max_tokens,
        strict_limits=options.strict_limits,
        strict_content=options.strict_content,
        shutdown_timeout_s=options.shutdown_timeout_s,
    )
    check_host(settings)
    if options.insecure_lan and not settings.keys:
        note("warning: --insecure-lan without a key: everyone who reaches this port can use the model")
    with (
        awake(allow_sleep=options.allow_sleep, watcher=Terminal()),
        listening(settings) as listener,
        LoopThread() as loop,
    ):
        head = _started(loop, Starting(head_options, Terminal()), listener)

        def ready(url: str) -> None:
            name = serving.model_name
            if as_json:
                record = {
                    "url": url,
                    "model": name,
                    "context": head.capacity.max_context,
                    "keys": len(settings.keys.digests),
                    "inexact": head.inexact,
                }
                announce(json.dumps(record))
            else:
                announce(f"{name}: {url}/v1")
                key = ", with a key as the password," if settings.keys else ""
                note(f"open {url}/ in a browser{key} to chat and to watch the chain; Ctrl+C ends it")

        serving = Gateway(head, settings)
        try:
            with _signals(loop, serving):
                loop.wait(serving.run(listener, on_ready=ready))
        finally:
            loop.wait(head.stop())
            head.tokenizer.close()
    return _CUT_SHORT if serving.was_cut_short else 0


def _started(loop: LoopThread, starting: Starting, listener: socket.socket) -> Head:
    """Start the head once its nodes serve every stage; until then requests get an error that names what is missing."""
    waiting, said = Waiting(), ""
    loop.wait(waiting.start(listener))
    try:
        while True:
            try:
                return loop.wait(starting.start())
            except ChainError as error:
                if not starting.names_nodes:
                    raise
                waiting.wait_for(error)
            if waiting.reason != said:
                said = waiting.reason
                note(f"waiting, and answering 503: {said}")
            time.sleep(_BETWEEN_STARTS_S)
    finally:
        loop.wait(waiting.stop())


@contextmanager
def _signals(loop: LoopThread, serving: Gateway) -> Iterator[None]:
    """Let SIGTERM and SIGINT drain the gateway, and a second signal end it at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        loop.call(serving.stop)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
