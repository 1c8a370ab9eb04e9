"""A gateway for programs: a context manager that serves the HTTP API over the nodes of pipelines."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from shardhub.errors import UsageError
from shardhub.gateway.served_models import ServedModels
from shardhub.gateway.server import Gateway, check_host, listening
from shardhub.gateway.service import ANY_MODEL
from shardhub.gateway.settings import GatewaySettings
from shardhub.gateway.waiting import Waiting
from shardhub.usecases.awake import awake
from shardhub.usecases.block import Block
from shardhub.usecases.chains_up import ChainSource, NamedChains
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.served_chains import ServedChains
from shardhub.usecases.start_head import HeadSettings
from shardhub.usecases.watcher import SILENT, Watcher

_DEFAULTS = GatewaySettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayFacts:
    """Facts about a gateway that answers requests.

    Attributes:
        url: Its address.
        model_name: The first model's first name, which is reported to clients that name none.
        model_names: The names of all models that were served at the start.
        context: Most positions of a prompt and its answer, of the first model.
        num_keys: Number of accepted API keys; if 0, clients need none.
        inexact: What is known to be inexact about the first model's chain, if anything.
    """

    url: str
    model_name: str
    model_names: tuple[str, ...]
    context: int
    num_keys: int
    inexact: str | None


class RunningGateway:
    """A gateway that answers requests. It is made by `open_gateway`, and ends with the `with` block.

    Attributes:
        facts: Where it answers, and what it serves.
    """

    def __init__(
        self, facts: GatewayFacts, gateway: Gateway, running: Future[None], loop: LoopThread, source: ChainSource
    ) -> None:
        self.facts = facts
        self._source = source
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

    def serve(self, heads: Sequence[HeadSettings | str | Path]) -> None:
        """Serve these chains from now on; returns at once.

        Chains with the same settings as before go on undisturbed. Others are added once their nodes are there. Those
        that are left out take no more requests, and end once their answers are complete.

        Raises:
            UsageError: A chain is given twice, or the gateway follows a cluster.
        """
        if not isinstance(self._source, NamedChains):
            raise UsageError(
                "This gateway serves what is up in its cluster.", hint="Use `shardhub up` and `shardhub down` instead."
            )
        self._source.set(heads_of(heads))

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

    def __init__(self, source: ChainSource, settings: GatewaySettings, watcher: Watcher, *, allow_sleep: bool) -> None:
        super().__init__()
        self._source = source
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
        models = ServedModels(settings)
        self._serve_chains(stack, loop, models, listener)
        gateway, ready = Gateway(models), Future[str]()
        running = loop.submit(gateway.run(listener, on_ready=ready.set_result))
        # A caller that waits for readiness also learns if the gateway ends before that.
        running.add_done_callback(lambda _: ready.cancel())
        stack.callback(_end, running, gateway, loop)
        try:
            url = LoopThread.result_of(ready)
        except CancelledError:
            running.result()
            raise
        first = models.services[0]
        facts = GatewayFacts(
            url=url,
            model_name=first.model_names[0],
            model_names=models.names,
            context=first.max_context,
            num_keys=len(settings.keys.digests),
            inexact=first.head.inexact,
        )
        return RunningGateway(facts, gateway, running, loop, self._source)

    def _serve_chains(self, stack: ExitStack, loop: LoopThread, models: ServedModels, listener: socket.socket) -> None:
        """Start the chains. Until one of them is complete, requests get an error that names what is missing.

        Raises:
            ChainError: No nodes are named, or may be later, and a stage has no server.
        """
        waiting = Waiting()
        chains = ServedChains(models, self._source, self._watcher, missing=lambda: waiting.wait_for(models.reason))
        if isinstance(self._source, NamedChains):
            chains.prepare(self._source.chains)
        stack.callback(lambda: loop.wait(chains.stop()))
        loop.wait(waiting.start(listener))
        try:
            loop.wait(chains.start())
        finally:
            loop.wait(waiting.stop())


def _end(running: Future[None], gateway: Gateway, loop: LoopThread) -> None:
    """Drain a gateway that still runs; `RunningGateway.wait` raises its error, if any."""
    if not running.done():
        loop.call(gateway.stop)
    wait([running])


def open_gateway(
    head: HeadSettings | str | Path | Sequence[HeadSettings | str | Path] | ChainSource,
    settings: GatewaySettings = _DEFAULTS,
    watcher: Watcher = SILENT,
    *,
    allow_sleep: bool = False,
) -> OpenGateway:
    """Serve the HTTP API over the nodes of one or several pipelines, for as long as a `with` block runs.

    The block is entered once the nodes serve every stage of a pipeline and requests are answered; until then they get a
    503 that says what is missing. Of several pipelines, the others are served once their nodes are there. The block is
    left once the answers in progress have ended or the drain time is over.

    Args:
        head: The pipeline and its nodes, or only the pipeline's folder or Hub id; or several of them. A model that
            several pipelines or chains serve has one name, and each request goes to the least loaded chain.
        settings: Where to listen, who may call, and how clients are answered.
        watcher: Notified of the current activity, and of nodes that come and go.
        allow_sleep: Let a Mac on mains power sleep while the gateway runs.

    Returns:
        A context manager that gives a `RunningGateway`.

    Raises:
        AddressError: The gateway cannot, or must not, listen there.
        UsageError: A chain is given twice, or one name to several models.
        ShardhubError: As `open_head`.
    """
    names = [name for name in settings.model_names if name != ANY_MODEL]
    heads = [head] if isinstance(head, HeadSettings | str | Path) else head
    source = NamedChains(heads_of(heads), model_names=names) if isinstance(heads, Sequence) else heads
    return OpenGateway(source, settings, watcher, allow_sleep=allow_sleep)


def heads_of(given: Sequence[HeadSettings | str | Path]) -> list[HeadSettings]:
    """Settings of heads from pipelines alone, or those that are given."""
    return [HeadSettings.of(each) for each in given]
