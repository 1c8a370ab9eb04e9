"""The world of a run: it builds a scenario's hosts, injects its faults, and runs until all requests have ended."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from shardhub.chain import stream
from shardhub.chain.local_link import LocalLink
from tests.simulation.head import Client, Head, all_over, whole_answer
from tests.simulation.light import LightNode
from tests.simulation.loop import Host, Stuck, VirtualLoop, current_host
from tests.simulation.network import Network
from tests.simulation.node import Node
from tests.simulation.scenario import Scenario

# Virtual seconds within which all requests end once nothing is wrong any more.
ENDS_WITHIN_S = 400.0
# Tokens that wait for a slow reader, in place of those of `shardhub.chain.stream`: answers here are short.
_MAX_UNREAD = 4
# Virtual seconds after which a condition is looked at again.
_STEP_S = 0.1
# Virtual seconds in which nodes free what their heads left, beyond a lease.
_FREED_WITHIN_S = 40.0


@dataclass(slots=True)
class Outcome:
    """The result of a run.

    Attributes:
        failures: What must not be, each a sentence; empty if all is well.
        story: What happened, a line each, if it was asked for.
        digest: Of all that was delivered, and when.
        ended_s: Virtual seconds that it took.
        num_callbacks, num_messages: Of its size.
        tokens, outcomes: Of each request.
    """

    failures: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    digest: int = 0
    ended_s: float = 0.0
    num_callbacks: int = 0
    num_messages: int = 0
    tokens: list[list[int]] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)


class _ErrorLog(logging.Handler):
    """Records what the product logs as an error, which is a failure."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage() + (f" ({record.exc_info[1]!r})" if record.exc_info else ""))


class World:
    """A run of a scenario.

    Attributes:
        loop, network: Of all hosts.
        nodes, heads, clients: In the scenario's order.
        stand_ins: Links to stages in heads, with their heads.
    """

    def __init__(self, scenario: Scenario, *, tells: bool = False) -> None:
        self.scenario = scenario
        self.loop = VirtualLoop()
        self.network = Network(self.loop, latency_s=scenario.latency_s)
        self.dice = random.Random(f"{scenario.seed} world")
        self.network.jitter_s = lambda: self.dice.uniform(0.0, scenario.jitter_s)
        self.story: list[str] = []
        self.stand_ins: list[tuple[Head, LocalLink]] = []
        self._tells = tells
        self._failures: list[str] = []
        self.began_s = self.loop.now
        self._expected: dict[int, list[int]] = {}
        self._addresses: dict[int, str] = {}
        self.nodes = [Node(self, index, spec) for index, spec in enumerate(scenario.nodes)]
        self.heads = [Head(self, index, spec) for index, spec in enumerate(scenario.heads)]
        self.clients = [Client(self, index, spec) for index, spec in enumerate(scenario.requests)]
        self.last_fault_s = max((fault.ends_s for fault in scenario.faults), default=0.0)

    # For faults.

    def tell(self, text: str) -> None:
        """Add a line to the list of events."""
        if self._tells:
            self.story.append(f"{self.loop.now - self.began_s:8.3f} {text}")

    def wrong(self, text: str) -> None:
        """Record a violation, once."""
        if text not in self._failures:
            self._failures.append(text)

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        """Schedule a function of the simulator."""
        self.network.later(seconds, call)

    def host(self, index: int) -> Host:
        """The host with this number in a fault: a node's index, or -1 - a head's."""
        return self.nodes[index].host if index >= 0 else self.heads[-1 - index].host

    def now_named(self, host: Host) -> Host:
        """The process that now runs on a host's machine."""
        there = [one.host for one in (*self.nodes, *self.heads) if one.host.name == host.name]
        return there[0]

    def addresses(self) -> list[str]:
        """Addresses of nodes, as given to a head."""
        return list(self._addresses.values())

    def node_started(self, node: Node | LightNode) -> None:
        """Handle a started node: heads that follow names get its address."""
        self._addresses[node.index] = node.address

    def expected(self, client: Client) -> list[int]:
        """A request's whole answer."""
        if client.index not in self._expected:
            scenario = self.scenario
            self._expected[client.index] = whole_answer(client.spec, scenario.num_layers, scenario.chunk)
        return self._expected[client.index]

    # The run.

    def run(self) -> Outcome:
        """Run the scenario from beginning to end, and check everything."""
        outcome = Outcome(story=self.story)
        log = _ErrorLog()
        logger = logging.getLogger("shardhub")
        was_propagated, logger.propagate = logger.propagate, False
        logger.addHandler(log)
        most_unread, stream.MAX_UNREAD = stream.MAX_UNREAD, _MAX_UNREAD
        try:
            self._play(outcome)
        except Stuck as stuck:
            outcome.failures.append(str(stuck))
            outcome.failures += self._unended()
        finally:
            stream.MAX_UNREAD = most_unread
            logger.removeHandler(log)
            logging.disable(logging.CRITICAL)
            errors = self.loop.unhandled()
            self.loop.close()
            logging.disable(logging.NOTSET)
            logger.propagate = was_propagated
        outcome.failures += self._failures
        outcome.failures += [f"logged as an error: {line}" for line in log.lines]
        outcome.failures += [f"{host}: {text} {error!r}" for host, text, error in errors]
        outcome.digest = self.network.digest
        outcome.ended_s = self.loop.now - self.began_s
        outcome.num_callbacks = self.loop.num_run
        outcome.num_messages = self.network.num_delivered
        outcome.tokens = [client.tokens for client in self.clients]
        outcome.outcomes = [client.outcome or "head gone" for client in self.clients]
        return outcome

    def _play(self, outcome: Outcome) -> None:
        from tests.simulation import checks

        scenario, loop = self.scenario, self.loop
        if not scenario.can_dial:
            for one in self.nodes:
                for other in self.nodes:
                    if one is not other:
                        self.network.line(one.host, other.host).is_cut = True
        for node in self.nodes:
            if not node.spec.is_late:
                self.later(0.0, node.start)
        for head in self.heads:
            self.later(head.spec.at_s, head.begin)
        for client in self.clients:
            self.later(client.spec.at_s, client.begin)
        for fault in scenario.faults:
            self.later(fault.at_s, lambda fault=fault: fault.strike(self))  # type: ignore[misc]
        watch = checks.Watch(self)
        most_s = max(self.last_fault_s, 10.0) + ENDS_WITHIN_S
        if scenario.requests:
            loop.run_until(all_over(self.clients), most_s=most_s)
        self._pass_until(self.last_fault_s)
        outcome.failures += checks.answers(self)
        outcome.failures += checks.works_again(self)
        outcome.failures += checks.heads_hold_nothing(self)
        breaks = self.dice.random() < 0.25  # connections, while heads stop
        for head in self.heads:
            if head.is_up:
                loop.spawn(head.host, head.stop())
                if breaks:
                    node = self.dice.choice(self.nodes)
                    self.later(self.dice.uniform(0.0, 0.03), partial(self.network.reset, head.host, node.host))
        loop.run_until(lambda: all(head.has_ended or not head.is_up for head in self.heads), most_s=200.0)
        self._pass(scenario.lease_s + _FREED_WITHIN_S)
        outcome.failures += checks.nodes_hold_nothing(self)
        outcome.failures += watch.failures

    def pass_in_steps(self, seconds: float) -> None:
        """Let time pass, to the moment at which `pass_until_true` would give up."""
        end, at = self.loop.now + seconds, self.loop.now
        while at < end:
            at += _STEP_S
        self._pass(at - self.loop.now)

    def pass_until_true(self, condition: Callable[[], bool], most_s: float) -> None:
        """Let time pass until a condition holds, or up to a limit."""
        end = self.loop.now + most_s
        while not condition() and self.loop.now < end:
            self._pass(_STEP_S)

    def _pass_until(self, at_s: float) -> None:
        self._pass(max(0.0, self.began_s + at_s - self.loop.now))

    def _pass(self, seconds: float) -> None:
        """Let so much time pass."""
        over: list[bool] = []
        self.later(seconds, partial(over.append, True))
        self.loop.run_until(over.__len__, most_s=seconds + 1.0)

    def _unended(self) -> list[str]:
        return [
            f"{client.name} at {client.head.name} has not ended: "
            f"{client.stream.status.value if client.stream else 'not begun'}"
            for client in self.clients
            if not client.is_over
        ]


def run(scenario: Scenario, *, tells: bool = False) -> Outcome:
    """Run a scenario."""
    before = current_host.set(None)
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        return World(scenario, tells=tells).run()
    finally:
        current_host.reset(before)
        # The next collection frees the world, whose objects refer to each other; during the run it would free little.
        if was_collecting:
            gc.enable()
