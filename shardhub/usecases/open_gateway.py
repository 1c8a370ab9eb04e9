"""A gateway for programs: a context manager that serves the HTTP API over a pipeline's nodes."""

from __future__ import annotations

import socket
import time
from concurrent.futures import CancelledError, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from shardhub.chain.head import Head
from shardhub.errors import ChainError
from shardhub.gateway.server import Gateway, check_host, listening
from shardhub.gateway.settings import GatewaySettings
from shardhub.gateway.waiting import Waiting
from shardhub.usecases.awake import awake
from shardhub.usecases.block import Block
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.start_head import HeadSettings, Starting
from shardhub.usecases.watcher import SILENT, Watcher

# Seconds between attempts to start while nodes are missing.
_BETWEEN_STARTS_S = 2.0
_DEFAULTS = GatewaySettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayFacts:
    """Facts about a gateway that answers requests.

    Attributes:
        url: Its address.
        model_name: The model's first name, which is reported to clients.
        context: Most positions of a prompt and its answer.
        num_keys: Number of accepted API keys; if 0, clients need none.
        inexact: What is known to be inexact about the chain, if anything.
    """

    url: str
    model_name: str
    context: int
    num_keys: int
    inexact: str | None


class RunningGateway:
    """A gateway that answers requests. It is made by `open_gateway`, and ends with the `with` block.

    Attributes:
        facts: Where it answers, and what it serves.
    """

    def __init__(self, facts: GatewayFacts, gateway: Gateway, running: Future[None], loop: LoopThread) -> None:
        self.facts = facts
        self._gateway = gateway
        self._running = running
        self._loop = loop

    @property
    def url(self) -> str:
        """URL of the gateway."""
        return self.facts.url

    @property
    def was_cut_short(self) -> bool:
        """Whether a second call of `stop` ended it before its answers were complete."""
        return self._gateway.was_cut_short

    def stop(self) -> None:
        """Ask the gateway to finish its answers and end; returns at once. A second call ends it without finishing."""
        self._loop.call(self._gateway.stop)

    def wait(self) -> None:
        """Wait until it has ended.

        Raises:
            ShardhubError: The gateway failed.
        """
        LoopThread.result_of(self._running)


class OpenGateway(Block[RunningGateway]):
    """A gateway as a context manager; see `open_gateway`."""

    def __init__(self, head: HeadSettings, settings: GatewaySettings, watcher: Watcher, *, allow_sleep: bool) -> None:
        super().__init__()
        self._head_settings = head
        self._settings = settings
        self._watcher = watcher
        self._allow_sleep = allow_sleep

    def _start(self, stack: ExitStack) -> RunningGateway:
        settings, watcher = self._settings, self._watcher
        check_host(settings)
        if settings.insecure_lan and not settings.keys:
            watcher.note("warning: `insecure_lan` without a key: anyone who reaches this port can use the model")
        stack.enter_context(awake(allow_sleep=self._allow_sleep, watcher=watcher))
        listener = stack.enter_context(listening(settings))
        loop = stack.enter_context(LoopThread())
        head = self._connected(loop, Starting(self._head_settings, watcher), listener)
        stack.callback(head.tokenizer.close)
        stack.callback(lambda: loop.wait(head.stop()))
        gateway, ready = Gateway(head, settings), Future[str]()
        running = loop.submit(gateway.run(listener, on_ready=ready.set_result))
        # A caller that waits for readiness also learns if the gateway ends before that.
        running.add_done_callback(lambda _: ready.cancel())
        stack.callback(_end, running, gateway, loop)
        try:
            url = LoopThread.result_of(ready)
        except CancelledError:
            running.result()
            raise
        facts = GatewayFacts(
            url=url,
            model_name=gateway.model_name,
            context=head.capacity.max_context,
            num_keys=len(settings.keys.digests),
            inexact=head.inexact,
        )
        return RunningGateway(facts, gateway, running, loop)

    def _connected(self, loop: LoopThread, starting: Starting, listener: socket.socket) -> Head:
        """Start the head once its nodes serve every stage; until then requests get an error that names what is missing.

        Raises:
            ChainError: No nodes are named, or may be later, and a stage has no server.
        """
        waiting, reported = Waiting(), ""
        loop.wait(waiting.start(listener))
        try:
            while True:
                try:
                    return loop.wait(starting.start())
                except ChainError as error:
                    if not starting.names_nodes:
                        raise
                    waiting.wait_for(error)
                if waiting.reason != reported:
                    reported = waiting.reason
                    self._watcher.note(f"waiting for the chain, answering 503: {reported}")
                time.sleep(_BETWEEN_STARTS_S)
        finally:
            loop.wait(waiting.stop())


def _end(running: Future[None], gateway: Gateway, loop: LoopThread) -> None:
    """Drain a gateway that still runs; `RunningGateway.wait` raises its error, if any."""
    if not running.done():
        loop.call(gateway.stop)
    wait([running])


def open_gateway(
    head: HeadSettings | str | Path,
    settings: GatewaySettings = _DEFAULTS,
    watcher: Watcher = SILENT,
    *,
    allow_sleep: bool = False,
) -> OpenGateway:
    """Serve the HTTP API over the nodes of a pipeline, for as long as a `with` block runs.

    The block is entered once the nodes serve every stage and requests are answered; until then they get a 503 that says
    what is missing. It is left once the answers in progress have ended or the drain time is over.

    Args:
        head: The pipeline and its nodes, or only the pipeline's folder or Hub id.
        settings: Where to listen, who may call, and how clients are answered.
        watcher: Notified of the current activity, and of nodes that come and go.
        allow_sleep: Let a Mac on mains power sleep while the gateway runs.

    Returns:
        A context manager that gives a `RunningGateway`.

    Raises:
        AddressError: The gateway cannot, or must not, listen there.
        ShardhubError: As `open_head`.
    """
    return OpenGateway(HeadSettings.of(head), settings, watcher, allow_sleep=allow_sleep)
