"""The invariants of every run: I1 to I8, and that nothing is left over."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from shardhub.chain.failures import is_recoverable
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.settings import Recovery
from shardhub.errors import ShardhubError
from tests.simulation import remains
from tests.simulation.faults import Kill, Partition
from tests.simulation.head import Client, all_over, whole_answer, whole_likelihoods
from tests.simulation.loop import HostState
from tests.simulation.scenario import RequestSpec
from tests.simulation.upkeep import Upkeep

if TYPE_CHECKING:
    from tests.simulation.world import World

# Interval at which sessions' leases are looked at, and how long after its end a session may still be there: leases are
# checked about every second, between steps.
_LOOK_S = 0.5
_LEASE_SLACK_S = 2.5
# Virtual seconds within which a fresh request is answered once all is well.
_WORKS_WITHIN_S = 60.0
# Virtual seconds in which heads find out that nodes are back: they ask every two seconds.
_SETTLES_S = 5.0
# Virtual seconds from the end of a fault until it is seen: keepalives, and attempts to connect.
_MENDED_S = 20.0


class Watch:
    """Checks all nodes repeatedly while a run goes on.

    Attributes:
        failures: What was wrong.
    """

    def __init__(self, world: World) -> None:
        self.failures: list[str] = []
        self._world = world
        self._upkeep = Upkeep(world)
        world.later(_LOOK_S, self._look)

    def _look(self) -> None:
        world = self._world
        for text in self._upkeep.look():
            self._fail(text)
        for node in world.nodes:
            engine = node.engine
            if engine is None or not engine._sessions._entries or node.host.state is not HostState.RUNNING:
                continue
            # A step that runs longer than a lease holds up its check.
            if engine.busy_s > 0 or node.slowness > 1:
                continue
            now = engine._clock.now()
            for entry in engine._sessions._all():
                if entry.lease_ends + _LEASE_SLACK_S < now and node.host.awake_for_s(world.loop) > _LEASE_SLACK_S:
                    self._fail(f"{node.name} holds a session {now - entry.lease_ends:.1f} s after its lease")
            budget = engine.kv_budget_bytes
            if engine.reserved_bytes > budget:
                self._fail(f"{node.name} has reserved {engine.reserved_bytes} bytes of KV of {budget}")
            if len(engine._sessions) > engine.limits.max_sessions:
                self._fail(f"{node.name} holds {len(engine._sessions)} sessions of {engine.limits.max_sessions}")
        world.later(_LOOK_S, self._look)

    def _fail(self, text: str) -> None:
        if text not in self.failures and len(self.failures) < 5:
            self.failures.append(text)


def answers(world: World) -> list[str]:
    """I1: a client got the whole answer, or a beginning of it and an error. I8: errors have causes."""
    failures: list[str] = []
    for client in world.clients:
        failures += [f"{client.name}: {text}" for text in _answer(world, client)]
    return failures


def _answer(world: World, client: Client) -> list[str]:
    expected, tokens = client.expected(), client.tokens
    if client.stream is not None and client.stream.num_recoveries and not world.scenario.faults:
        return [f"had to be recovered {client.stream.num_recoveries} times without a fault"]
    if (text := remains.reused_too_much(world, client)) is not None:
        return [text]
    if tokens != expected[: len(tokens)] and _must_be_exact(world, client):
        at = next(
            (at for at, (one, other) in enumerate(zip(tokens, expected, strict=False)) if one != other), len(expected)
        )
        return [f"token {at} is {tokens[at]}, not {expected[at] if at < len(expected) else 'beyond the end'}"]
    if client.outcome in ("stop", "length"):
        return _whole(world, client, expected)
    if client.outcome == "failed":
        if not isinstance(client.error, ShardhubError):
            return [f"failed with {client.error!r}"]
        if not _may_fail(world):
            return [f"failed without a fault: {client.error}"]
        if is_recoverable(client.error) and _all_heals(world):
            return [f"failed although every fault ended in time: {client.error}"]
    if client.outcome == "cancelled":
        return ["ended without a finish or an error"]
    return []


def _whole(world: World, client: Client, expected: list[int]) -> list[str]:
    tokens = client.tokens
    if len(tokens) != len(expected) and _must_be_exact(world, client):
        # An answer may also end as nothing has room for more.
        most = world.heads[client.spec.head].scheduler.chain.max_context  # type: ignore[union-attr]
        is_full = client.outcome == "length" and (
            len(client.prompt) + len(tokens) >= most or world.heads[client.spec.head].spec.first_answer < len(expected)
        )
        if not is_full:
            return [f"ended ({client.outcome}) after {len(tokens)} of {len(expected)} tokens"]
    if client.spec.score and client.stream is not None and len(client.prompt) > 1:
        likely = client.stream.prompt_logprobs
        if len(likely) != len(client.prompt) - 1:
            return [f"{len(likely)} likelihoods for {len(client.prompt)} ids"]
        if _must_be_exact(world, client) and likely != whole_likelihoods(
            client.spec, world.scenario.num_layers, world.scenario.chunk
        ):
            return ["the likelihoods of the prompt are wrong"]
    return []


def _must_be_exact(world: World, client: Client) -> bool:
    """Whether each token must be that of a run without faults: not if the head recomputes in other shapes."""
    head = world.heads[client.spec.head]
    return (
        world.scenario.chunk is None
        or head.spec.recovery is not Recovery.FAST
        or bool(client.stream is not None and client.stream.is_exact)
    )


def _all_heals(world: World) -> bool:
    """Whether every fault ends before a head stops waiting, with the original nodes.

    Nodes that cannot reach each other fail no request: their steps go through the head.
    """
    harmful = [
        fault
        for fault in world.scenario.faults
        if not isinstance(fault, Partition) or fault.sender < 0 or fault.receiver < 0
    ]
    last_s = max((fault.ends_s for fault in harmful), default=0.0)
    return last_s + _MENDED_S < world.scenario.recover_wait_s and not any(
        isinstance(fault, Kill) and (fault.back_s is None or fault.as_old) for fault in harmful
    )


def _may_fail(world: World) -> bool:
    """Whether requests may end with an error: a fault occurred, or nodes have little room."""
    return bool(world.scenario.faults) or any(
        spec.kv_positions < 4096 or spec.max_sessions < 8 for spec in world.scenario.nodes
    )


def works_again(world: World) -> list[str]:
    """I5: once all stages are served again, each remaining head answers a fresh request."""
    world.pass_in_steps(_SETTLES_S)
    served = {
        stage
        for node in world.nodes
        if node.is_up and not node.is_old and not node.is_draining
        for stage in range(node.spec.first, node.spec.last + 1)
    }
    for node in world.nodes:
        node.num_to_break = 0
    heads = [head for head in world.heads if head.is_up and not head.has_ended]
    if len(served) < world.scenario.num_stages or not heads:
        return []
    at_s = world.loop.now - world.began_s
    fresh = []
    for index, head in enumerate(heads):
        spec = RequestSpec(at_s=at_s, head=head.index, prompt=3, own=2, max_tokens=3, reuse=False, seed=index)
        fresh.append(Client(world, len(world.clients) + index, spec))
    for client in fresh:
        client.begin()
    try:
        world.loop.run_until(all_over(fresh), most_s=_WORKS_WITHIN_S + world.scenario.wait_s)
    except RuntimeError as stuck:
        waiting = [client for client in fresh if not client.is_over]
        return [
            f"{client.head.name} does not answer a fresh request though all stages are served: {stuck} "
            f"{client.stream.status.value if client.stream else client.head.failure}"
            for client in waiting
        ]
    failures = []
    for client in fresh:
        expected = whole_answer(client.spec, world.scenario.num_layers, world.scenario.chunk)
        if client.tokens != expected:
            failures.append(
                f"a fresh request to {client.head.name} gave {client.tokens} ({client.outcome}: {client.error})"
            )
    return failures


def _is_idle(scheduler: Scheduler) -> bool:
    return not scheduler.streams and not scheduler.chain.steps._num_ids_out


def heads_hold_nothing(world: World) -> list[str]:
    """I3 on heads: no streams, only parked sessions, and all credit returned."""
    failures = []
    for head in world.heads:
        scheduler = head.scheduler
        if scheduler is None or not head.is_up:
            continue
        world.pass_until_true(partial(_is_idle, scheduler), 60.0)
        if scheduler.streams:
            failures.append(f"{head.name} still has {len(scheduler.streams)} streams")
        live = [session for session in scheduler.chain._sessions.values() if not session.is_parked]
        if live:
            failures.append(f"{head.name} still has {len(live)} sessions")
        credit = scheduler.chain.steps.credit
        missing = scheduler.chain._queue_steps - credit._steps, credit._most - credit._bytes
        if missing != (0, 0):
            failures.append(f"{head.name} misses credit of {missing[0]} steps and {missing[1]} bytes")
        if scheduler.chain.steps._num_ids_out:
            failures.append(f"{head.name} counts {scheduler.chain.steps._num_ids_out} ids in flight")
        if scheduler.num_decoding or scheduler.num_waiting:
            failures.append(f"{head.name} counts {scheduler.num_decoding} decoding, {scheduler.num_waiting} waiting")
    failures += [*remains.of_heads(world), *remains.of_nodes(world)]
    return failures


def nodes_hold_nothing(world: World) -> list[str]:
    """I3 on nodes: once all heads have gone and a lease has passed, nothing of them is left."""
    failures = []
    for node in world.nodes:
        if not node.is_up or node.engine is None or node.servicer is None:
            continue
        sessions, parked = node.engine.num_sessions, node.engine._sessions.num_parked
        if sessions or parked:
            failures.append(f"{node.name} still holds {sessions} sessions and {parked} parked ones")
        if node.engine._compute.num_queued:
            failures.append(f"{node.name} still has {node.engine._compute.num_queued} steps queued")
        links = len(node.servicer._peers._links)
        if links or node.servicer._heads:
            failures.append(f"{node.name} still has {links} links to nodes and {len(node.servicer._heads)} to heads")
        if node.engine._masks._masks or node.engine._masks._held:
            failures.append(f"{node.name} still holds masks")
    return failures
