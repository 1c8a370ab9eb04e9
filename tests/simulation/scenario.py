"""A scenario: all inputs of a run, as data; `draw` makes one from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from shardhub.chain.settings import Recovery
from shardhub.manifest import Manifest
from tests.simulation import faults
from tests.simulation.faults import Fault
from tests.simulation.stage import manifest_of


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """A node.

    Attributes:
        first, last: Stages it serves.
        is_late: It starts by a fault `Joins` only.
        id_s: Seconds it computes for each id, in all its layers.
        max_sessions, kv_positions: What it has room for.
    """

    first: int
    last: int
    is_late: bool = False
    id_s: float = 0.002
    max_sessions: int = 8
    kv_positions: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """A head.

    Attributes:
        at_s: When it starts.
        recovery: How it recovers streams.
        first_answer: Positions a session has at first beyond its prompt.
        max_rows, num_microbatches: See `SchedulerSettings`.
        may_stand_in: Whether it can load any stage itself.
    """

    at_s: float = 0.0
    recovery: Recovery = Recovery.EXACT
    first_answer: int = 2048
    max_rows: int | None = None
    num_microbatches: int | None = None
    may_stand_in: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpec:
    """A request of a client.

    Attributes:
        at_s: When it comes.
        head: Index of its head.
        prompt: Length of the prompt.
        words: Seed of the prompt's ids: prompts of one seed begin alike.
        own: Ids at its end that no other prompt has.
        temperature, seed: Of its draws.
        reuse: Whether KV may be reused.
        right_drafts: Share of drafts that are right; None drafts nothing.
        masked: Whether its draws wait for masks.
        score: Whether the prompt's likelihoods are asked for.
        leaves_after: Tokens after which the client leaves; None stays.
        leaves_s: Seconds after which it leaves.
        read_s: Seconds it takes to read a token.
    """

    at_s: float
    head: int = 0
    prompt: int = 5
    words: int = 0
    own: int = 1
    max_tokens: int = 8
    tenant: str = ""
    temperature: float = 0.0
    seed: int = 0
    reuse: bool = True
    right_drafts: float | None = None
    masked: bool = False
    score: bool = False
    leaves_after: int | None = None
    leaves_s: float | None = None
    read_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The inputs of a run.

    Attributes:
        seed: Of everything that is drawn while it runs, such as delays.
        cuts: Layer at which each stage ends.
        chunk: Ids of every chunk of a prompt; the numbers then depend on the shapes of steps, and KV is not reused.
            None lets the head choose, and shapes do not matter.
        can_trim: Whether sessions can go back; recurrent architectures cannot.
        lease_s: Of all nodes.
        latency_s, jitter_s: Of all lines.
        can_dial: Whether nodes reach each other; if not, all goes through the head.
        recover_wait_s, wait_s: Of all heads.
        queue_steps: Steps that a node queues for a head, which are the heads' credit.
    """

    seed: int
    cuts: tuple[int, ...] = (1, 2)
    nodes: tuple[NodeSpec, ...] = ()
    heads: tuple[HeadSpec, ...] = (HeadSpec(),)
    requests: tuple[RequestSpec, ...] = ()
    faults: tuple[Fault, ...] = ()
    chunk: int | None = None
    can_trim: bool = True
    lease_s: float = 10.0
    latency_s: float = 0.0005
    jitter_s: float = 0.0
    can_dial: bool = True
    recover_wait_s: float = 60.0
    wait_s: float = 60.0
    queue_steps: int = 32

    @property
    def num_layers(self) -> int:
        return self.cuts[-1]

    @property
    def num_stages(self) -> int:
        return len(self.cuts)

    @property
    def manifest(self) -> Manifest:
        return manifest_of(self.cuts)


# Seconds in which requests come and faults strike.
SPAN_S = 3.0
# Seeds from this one on draw further faults, so that those before, and the mutants that they find, stay as they were.
MORE_FAULTS = 100_000


def draw(seed: int, *, most_faults: int = 4) -> Scenario:
    """Draw a scenario."""
    dice = random.Random(seed)
    num_stages = dice.choice((1, 2, 2, 2, 3, 3, 4))
    cuts = tuple(range(1, num_stages + 1))
    nodes = _draw_nodes(dice, num_stages)
    is_exact = dice.random() < 0.4
    heads = tuple(_draw_head(dice, is_first=index == 0) for index in range(dice.choice((1, 1, 1, 1, 2, 3))))
    requests = tuple(_draw_request(dice, len(heads), is_exact=is_exact) for _ in range(dice.choice((1, 1, 2, 2, 3, 5))))
    scenario = Scenario(
        seed=seed,
        cuts=cuts,
        nodes=nodes,
        heads=heads,
        requests=tuple(sorted(requests, key=lambda request: request.at_s)),
        chunk=dice.choice((2, 3, 8)) if is_exact else None,
        can_trim=is_exact or dice.random() < 0.85,
        lease_s=dice.choice((3.0, 10.0, 30.0)),
        latency_s=dice.choice((0.0002, 0.001, 0.01)),
        jitter_s=dice.choice((0.0, 0.0005, 0.02)),
        can_dial=dice.random() < 0.8,
    )
    drawn = [_draw_fault(dice, scenario) for _ in range(dice.randint(0, most_faults))]
    drawn += [
        faults.Joins(at_s=dice.uniform(0.0, SPAN_S), node=index) for index, node in enumerate(nodes) if node.is_late
    ]
    # What is drawn last leaves the rest of a seed's history as it was before.
    queue_steps = dice.choice((2, 4, 32, 32))
    kind = dice.random()
    scenario = replace(scenario, requests=_of_a_kind(scenario.requests, kind))
    if not is_exact and dice.random() < 0.2:
        scenario = replace(scenario, requests=(*scenario.requests, *_draw_alike(dice)))
    drawn += _draw_aimed(dice, scenario, kind)
    if seed >= MORE_FAULTS:
        drawn += _draw_more(dice, scenario)
    return _with(scenario, faults=tuple(sorted(drawn, key=lambda fault: fault.at_s)), queue_steps=queue_steps)


def _with(scenario: Scenario, **changes: object) -> Scenario:
    return replace(scenario, **changes)  # type: ignore[arg-type]


def _draw_nodes(dice: random.Random, num_stages: int) -> tuple[NodeSpec, ...]:
    """Draw nodes for all stages, some serving several, some stages served twice."""
    nodes: list[NodeSpec] = []
    first = 0
    while first < num_stages:
        last = min(num_stages - 1, first + (dice.random() < 0.15))
        speed = dice.choice((0.0005, 0.002, 0.01))
        room = dice.choice((1, 2, 4, 8, 8))
        kv_positions = dice.choice((64, 256, 4096))
        nodes.extend(
            NodeSpec(
                first=first,
                last=last,
                is_late=replica > 0 and dice.random() < 0.5,
                id_s=speed,
                max_sessions=room,
                kv_positions=kv_positions,
            )
            for replica in range(dice.choice((1, 1, 1, 2)))
        )
        first = last + 1
    return tuple(nodes)


def _draw_head(dice: random.Random, *, is_first: bool) -> HeadSpec:
    return HeadSpec(
        at_s=0.0 if is_first else dice.choice((0.0, dice.uniform(0.0, 1.0))),
        recovery=dice.choice((Recovery.EXACT, Recovery.EXACT, Recovery.EXACT, Recovery.FAST)),
        first_answer=dice.choice((2, 4, 2048)),
        max_rows=dice.choice((None, None, 1, 2)),
        num_microbatches=dice.choice((None, None, 1)),
        may_stand_in=dice.random() < 0.3,
    )


def _draw_request(dice: random.Random, num_heads: int, *, is_exact: bool) -> RequestSpec:
    drafts = None if is_exact else dice.choice((None, None, None, 0.5, 0.9))
    leaves = dice.random()
    return RequestSpec(
        at_s=dice.choice((0.01, dice.uniform(0.0, SPAN_S))),
        head=dice.randrange(num_heads),
        prompt=dice.choice((1, 2, 5, 5, 12, 30)),
        words=dice.randrange(2),
        own=dice.choice((0, 1, 3)),
        max_tokens=dice.choice((1, 3, 8, 8, 16, 24)),
        tenant=dice.choice(("", "", "a")),
        temperature=dice.choice((0.0, 1.0)),
        seed=dice.randrange(3),
        reuse=not is_exact,
        right_drafts=drafts,
        masked=drafts is None and dice.random() < 0.1,
        score=drafts is None and dice.random() < 0.08,
        leaves_after=dice.randint(0, 6) if leaves < 0.1 else None,
        leaves_s=dice.uniform(0.0, 1.0) if 0.1 < leaves < 0.2 else None,
        read_s=dice.choice((0.0, 0.0, 0.0, 0.05)),
    )


def _of_a_kind(requests: tuple[RequestSpec, ...], kind: float) -> tuple[RequestSpec, ...]:
    """Occasionally make all requests of one kind: with long prompts, with masks, or with prompt likelihoods."""
    if kind < 0.1:
        return tuple(replace(one, prompt=90) for one in requests)
    plain = tuple(replace(one, right_drafts=None, masked=False, score=False) for one in requests)
    if kind < 0.2:
        return tuple(replace(one, masked=True) for one in plain)
    if kind < 0.3:
        return tuple(replace(one, score=True, prompt=90) for one in plain)
    return requests


def _draw_alike(dice: random.Random) -> list[RequestSpec]:
    """Draw successive requests with a common beginning, like those of a chat."""
    at_s = dice.uniform(0.0, SPAN_S)
    requests = []
    for _ in range(dice.choice((2, 3, 4))):
        requests.append(
            RequestSpec(
                at_s=at_s,
                prompt=dice.choice((12, 12, 30)),
                own=dice.choice((0, 1, 3)),
                max_tokens=dice.choice((3, 8, 16)),
                tenant=dice.choice(("", "", "a")),
                right_drafts=dice.choice((None, 0.5)),
            )
        )
        at_s += dice.uniform(0.2, 2.0)
    return requests


def _draw_aimed(dice: random.Random, scenario: Scenario, kind: float) -> list[Fault]:
    """Draw faults at the moments where they do most."""
    drawn: list[Fault] = []
    if dice.random() < 0.1 or 0.2 <= kind < 0.3:
        drawn += _draw_flapping(dice, scenario)
    one, other = dice.randrange(len(scenario.nodes)), dice.randrange(len(scenario.nodes))
    if dice.random() < 0.1 and one != other:  # their steps go through the head from then on
        drawn.append(faults.Partition(at_s=dice.uniform(0.0, SPAN_S), sender=one, receiver=other, for_s=120.0))
    if dice.random() < 0.06:  # a node that comes back with another version while streams wait for it
        at_s = dice.choice(scenario.requests).at_s + dice.uniform(0.01, 0.1)
        drawn.append(faults.Kill(at_s=at_s, node=one, back_s=1.0, as_old=True))
    if dice.random() < 0.15:  # a node that is lost while a stream runs
        at_s = dice.choice(scenario.requests).at_s + dice.uniform(0.02, 0.4)
        drawn.append(faults.Kill(at_s=at_s, node=other, back_s=0.2))
    return drawn


def _draw_more(dice: random.Random, scenario: Scenario) -> list[Fault]:
    """Draw full buffers, and leases that end while a stream is opened, runs or has just ended."""
    drawn: list[Fault] = []
    node, head = dice.randrange(len(scenario.nodes)), -1 - dice.randrange(len(scenario.heads))
    at_s = dice.choice(scenario.requests).at_s + dice.uniform(0.0, 0.4)
    if dice.random() < 0.3:
        for_s = dice.choice((0.05, 0.5, 3.0, 12.0))
        drawn.append(faults.Clog(at_s=at_s, host=dice.choice((node, node, head)), for_s=for_s))
    if dice.random() < 0.2:
        at_s = dice.choice(scenario.requests).at_s + dice.choice((0.0005, 0.002, 0.01, dice.uniform(0.0, 0.6)))
        drawn += [faults.Lapse(at_s=at_s + 0.003 * at, node=node) for at in range(dice.choice((1, 1, 4)))]
    return drawn


def _draw_flapping(dice: random.Random, scenario: Scenario) -> list[Fault]:
    """Draw connections that break repeatedly, also while they are being opened."""
    node, head = dice.randrange(len(scenario.nodes)), -1 - dice.randrange(len(scenario.heads))
    at_s = dice.choice((0.0, dice.uniform(0.0, SPAN_S)))
    resets: list[Fault] = []
    for _ in range(8):
        resets.append(faults.Reset(at_s=at_s, one=head, other=node))
        at_s += dice.uniform(0.01, 0.4)
    return resets


def _draw_fault(dice: random.Random, scenario: Scenario) -> Fault:
    at_s = dice.uniform(0.0, SPAN_S)
    node, other = dice.randrange(len(scenario.nodes)), dice.randrange(len(scenario.nodes))
    head = -1 - dice.randrange(len(scenario.heads))
    host = dice.choice((node, node, node, head))
    for_s = dice.choice((0.01, 0.3, 2.0, dice.uniform(0.0, 8.0), 25.0))
    ends = dice.choice(((node, head), (head, node), (node, other)))
    if ends[0] == ends[1]:
        ends = (node, head)
    kinds: list[tuple[int, Callable[[], Fault]]] = [
        (
            5,
            lambda: faults.Kill(
                at_s=at_s,
                node=node,
                back_s=dice.choice((0.0, 0.2, 1.0, 7.0, None)),
                quietly=dice.random() < 0.2,
                as_old=dice.random() < 0.1,
                moved=dice.random() < 0.15,
            ),
        ),
        (3, lambda: faults.Freeze(at_s=at_s, host=host, for_s=for_s, sleeps=dice.random() < 0.4)),
        (
            3,
            lambda: faults.Partition(
                at_s=at_s, sender=ends[0], receiver=ends[1], for_s=for_s, both=dice.random() < 0.5
            ),
        ),
        (3, lambda: faults.Reset(at_s=at_s, one=ends[0], other=ends[1])),
        (2, lambda: faults.Slow(at_s=at_s, sender=ends[0], receiver=ends[1], for_s=for_s)),
        (1, lambda: faults.Busy(at_s=at_s, node=node, for_s=for_s)),
        (1, lambda: faults.Squeeze(at_s=at_s, node=node, for_s=for_s)),
        (2, lambda: faults.Break(at_s=at_s, node=node, num_steps=dice.choice((1, 2)))),
        (2, lambda: faults.Lapse(at_s=at_s, node=node)),
        (1, lambda: faults.Drain(at_s=at_s, node=node)),
        (1, lambda: faults.HeadGone(at_s=at_s, head=-1 - head, quietly=dice.random() < 0.3)),
        (1, lambda: faults.DateJump(at_s=at_s, host=host, by_s=dice.choice((-86400.0, 3600.0)))),
    ]
    weights, makers = zip(*kinds, strict=True)
    return dice.choices(makers, weights)[0]()
