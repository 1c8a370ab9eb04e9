"""A head of the simulation and its clients: a real scheduler and chain on a host of their own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from shardhub.chain.assignment import NodeStages, assign_stages, stages_of
from shardhub.chain.chain import Chain
from shardhub.chain.links import NodeDialer
from shardhub.chain.local_link import LocalLink
from shardhub.chain.membership import Membership
from shardhub.chain.place import Place
from shardhub.chain.request import Request
from shardhub.chain.roll_call import roll_call
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.settings import SchedulerSettings
from shardhub.chain.stage_link import StageLink
from shardhub.chain.stream import Stream
from shardhub.engine.engine import Engine, EngineSettings
from shardhub.errors import ShardhubError
from shardhub.parameters import SamplingParameters
from tests.simulation.arithmetic import END_IDS, VOCAB_SIZE, WholeModel
from tests.simulation.clock import HostClock, SeededDice
from tests.simulation.loop import Host, HostState
from tests.simulation.node import FACTS, MESSAGE_BYTES
from tests.simulation.scenario import HeadSpec, RequestSpec
from tests.simulation.stage import CONTEXT, MAX_CHUNK, HashStage, Processor

if TYPE_CHECKING:
    from tests.simulation.world import World

# Interval at which a head that cannot start tries again.
_AGAIN_S = 1.0
# How long it tries, once nothing is wrong any more.
_STARTS_WITHIN_S = 30.0


class Head:
    """A process that runs a head.

    Attributes:
        host: Its process.
        scheduler: Once it runs.
        failure: Why it last could not start.
    """

    def __init__(self, world: World, index: int, spec: HeadSpec) -> None:
        self.name = f"head {index}"
        self.index = index
        self.spec = spec
        self.host = Host(self.name)
        self.scheduler: Scheduler | None = None
        self.membership: Membership | None = None
        self.failure: ShardhubError | None = None
        self.has_ended = False
        self._world = world
        self._clock = HostClock(world.loop, self.host)
        self._dice = SeededDice(random.Random(f"{world.scenario.seed} {self.name}"))
        self._started = asyncio.Event()

    @property
    def is_up(self) -> bool:
        """Whether its process runs."""
        return self.host.state is not HostState.DEAD

    def begin(self) -> None:
        """Start the process."""
        if self.is_up:
            self._world.loop.spawn(self.host, self._run())

    def kill(self, *, quietly: bool = False) -> None:
        """End its process as by SIGKILL."""
        if self.is_up:
            self._world.loop.kill(self.host)
            self._world.network.gone(self.host, quietly=quietly)

    async def until_started(self) -> Scheduler:
        """Wait until the head has started."""
        await self._started.wait()
        assert self.scheduler is not None
        return self.scheduler

    async def stop(self) -> None:
        """Shut it down regularly."""
        if self.scheduler is not None:
            self._following.cancel()
            await self.scheduler.stop()
            await self.scheduler.chain.stop()
        self.has_ended = True

    async def _run(self) -> None:
        world, scenario = self._world, self._world.scenario
        dialer = NodeDialer(opener=world.network.opener(self.host), clock=self._clock)
        give_up_at = self._clock.now() + world.last_fault_s + _STARTS_WITHIN_S
        while True:
            addresses = world.addresses()
            try:
                present = await roll_call(scenario.manifest, addresses, dialer=dialer, clock=self._clock)
                links: list[StageLink] = []
                for assigned in assign_stages(scenario.manifest, present.nodes):
                    assert isinstance(assigned, NodeStages)
                    links.append(dialer.link(assigned.address, assigned.description))
                chain = await Chain.start(links, clock=self._clock, dice=self._dice)
                break
            except ShardhubError as error:
                self.failure = error
                if self._clock.now() > give_up_at:
                    world.tell(f"{self.name} gives up: {error}")
                    self.has_ended = True
                    return
                await self._clock.sleep(_AGAIN_S)
        settings = SchedulerSettings(
            max_rows=self.spec.max_rows,
            num_microbatches=self.spec.num_microbatches,
            prefill_chunk=scenario.chunk,
            wait_s=scenario.wait_s,
            recovery=self.spec.recovery,
            recover_wait_s=scenario.recover_wait_s,
            first_answer=self.spec.first_answer,
        )
        self.scheduler = Scheduler(chain, settings, stand_in=self._stand_in if self.spec.may_stand_in else None)
        self.scheduler.events.watch(lambda event: world.tell(f"{self.name}: {event.text}"))
        self.membership = Membership(scenario.manifest, self.scheduler, dialer=dialer)
        self._following = asyncio.ensure_future(self.membership.follow(world.addresses))
        world.tell(f"{self.name} runs over {len(links)} nodes")
        self._started.set()

    async def _stand_in(self, place: Place) -> StageLink | None:
        scenario = self._world.scenario
        assigned = stages_of(scenario.manifest, place.link.facts)
        await self._clock.sleep(0.5)
        stage = HashStage(
            scenario.manifest,
            assigned.first,
            assigned.last,
            can_trim=scenario.can_trim,
            is_exact=scenario.chunk is not None,
            kv_positions=4096,
            spend=lambda num_ids: self._clock.spend(0.002 * num_ids),
        )
        processor = Processor(self._clock, idle=lambda: engine.expire())
        settings = EngineSettings(context=CONTEXT, lease_s=scenario.lease_s, max_chunk=MAX_CHUNK)
        engine = Engine(processor, stage, settings, MESSAGE_BYTES, clock=self._clock, dice=self._dice)
        link = LocalLink(engine, host=lambda: FACTS)
        self._world.stand_ins.append((self, link))
        return link


class AllowedTokens:
    """A grammar that allows alternating two thirds of the vocabulary."""

    def __init__(self) -> None:
        self._num = 0

    def mask(self) -> bytes:
        return mask_at(self._num)

    def accept(self, token: int) -> None:
        self._num += 1


def mask_at(number: int) -> bytes:
    """Bits of the ids that the grammar allows at this place of the answer."""
    return _mask(number % 3)


@cache
def _mask(number: int) -> bytes:
    bits = [token % 3 != number for token in range(VOCAB_SIZE)]
    return bytes(sum(bit << at for at, bit in enumerate(bits[start : start + 8])) for start in range(0, len(bits), 8))


class Client:
    """A client of one request.

    Attributes:
        tokens: Tokens that it was given.
        outcome: How the request ended for it: "stop", "length", "failed", "left"; empty while it runs.
        error: Why it failed.
        ended_s: When.
    """

    def __init__(self, world: World, index: int, spec: RequestSpec) -> None:
        self.index = index
        self.name = f"request {index}"
        self.spec = spec
        self.tokens: list[int] = []
        self.outcome = ""
        self.error: BaseException | None = None
        self.began_s = 0.0
        self.ended_s = 0.0
        self.stream: Stream | None = None
        self.prompt = prompt_of(spec)
        self._world = world

    @property
    def head(self) -> Head:
        return self._world.heads[self.spec.head]

    @property
    def is_over(self) -> bool:
        """Whether the request has ended for its client, by its own end or by its head's."""
        if self.outcome:
            return True
        head = self.head
        return head.host.state is HostState.DEAD or head.has_ended

    def expected(self) -> list[int]:
        """The whole answer, as one machine would give it."""
        return self._world.expected(self)

    def begin(self) -> None:
        """Send the request, if its head is running."""
        if self.head.is_up:
            self._world.loop.spawn(self.head.host, self._run(), name=self.name)

    async def _run(self) -> None:
        scheduler = await self.head.until_started()
        world, spec = self._world, self.spec
        self.began_s = world.loop.now
        parameters = SamplingParameters(temperature=spec.temperature, seed=spec.seed)
        world.tell(f"{self.name} comes to {self.head.name}: {len(self.prompt)} ids, {spec.max_tokens} more")
        request = Request(
            prompt=self.prompt,
            parameters=parameters,
            max_tokens=spec.max_tokens,
            end_ids=END_IDS,
            tenant=spec.tenant,
            reuse=spec.reuse,
            drafter=self._drafter(spec.right_drafts) if spec.right_drafts is not None else None,
            grammar=AllowedTokens() if spec.masked else None,
            score=spec.score,
        )
        timer = None
        try:
            self.stream = stream = scheduler.submit(request)
            if spec.leaves_s is not None:
                timer = world.loop.call_later(spec.leaves_s, lambda: self._leave(stream))
            async for token in stream:
                self.tokens.append(token.id)
                if spec.leaves_after is not None and len(self.tokens) > spec.leaves_after:
                    self._leave(stream)
                    break
                if spec.read_s:
                    await asyncio.sleep(spec.read_s)
            if not self.outcome:
                self._end(stream.finish or "cancelled")
        except ShardhubError as error:
            self.error = error
            if not self.outcome:
                self._end("failed")
        finally:
            if timer is not None:
                timer.cancel()
            if self.stream is not None:
                self.stream.cancel()

    def _leave(self, stream: Stream) -> None:
        if not self.outcome:
            self._end("left")
        stream.cancel()

    def _end(self, outcome: str) -> None:
        self.outcome = outcome
        self.ended_s = self._world.loop.now
        why = f": {self.error}" if self.error is not None else ""
        self._world.tell(f"{self.name} ends after {len(self.tokens)} tokens: {outcome}{why}")

    def _drafter(self, share: float) -> Callable[[Sequence[int]], Sequence[int]]:
        """Guess the real continuation, and sometimes something else."""
        dice = random.Random(f"{self._world.scenario.seed} drafts {self.index}")
        whole = [*self.prompt, *self.expected()]

        def draft(ids: Sequence[int]) -> Sequence[int]:
            following = whole[len(ids) : len(ids) + dice.randint(0, 4)]
            return [token if dice.random() < share else (token + 7) % VOCAB_SIZE for token in following]

        return draft


def all_over(clients: Sequence[Client]) -> Callable[[], bool]:
    """A function that tells whether all requests have ended; one that has ended is not looked at again."""
    running = list(clients)

    def is_over() -> bool:
        while running and running[-1].is_over:
            running.pop()
        return not running

    return is_over


def prompt_of(spec: RequestSpec) -> list[int]:
    """Ids of a request's prompt."""
    dice = random.Random(f"words {spec.words}")
    ids = [dice.randrange(len(END_IDS), VOCAB_SIZE) for _ in range(spec.prompt)]
    own = random.Random(f"own {spec.at_s} {spec.seed}")
    return [*ids, *(own.randrange(len(END_IDS), VOCAB_SIZE) for _ in range(spec.own))]


def whole_answer(spec: RequestSpec, num_layers: int, chunk: int | None) -> list[int]:
    """What one machine answers to a request."""
    parameters = SamplingParameters(temperature=spec.temperature, seed=spec.seed)
    model = WholeModel(num_layers, chunk)
    return model.answer(prompt_of(spec), parameters, spec.max_tokens, mask_at if spec.masked else None)


def whole_likelihoods(spec: RequestSpec, num_layers: int, chunk: int | None) -> list[float]:
    """Log probabilities of a prompt's ids from the second on, as one machine gives them."""
    return WholeModel(num_layers, chunk).likelihoods(prompt_of(spec))
