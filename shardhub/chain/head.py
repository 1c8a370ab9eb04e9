"""The head: answers prompts over the nodes that serve a pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.chain.assignment import LocalStages, NodeStages, assign_stages, stages_of
from shardhub.chain.chain import Chain
from shardhub.chain.drafts import Drafter
from shardhub.chain.introductions import introduce_nodes
from shardhub.chain.links import NodeDialer
from shardhub.chain.local_link import LocalLink
from shardhub.chain.membership import Membership
from shardhub.chain.place import Place
from shardhub.chain.request import Request
from shardhub.chain.roll_call import roll_call
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.served import Capacity, ServedStages, capacity_of, chain_line, describe_stages, served_stages
from shardhub.chain.settings import SchedulerSettings
from shardhub.chain.stage_link import Dialer, StageLink
from shardhub.chain.stream import Finish
from shardhub.chain.text_stream import TextStream
from shardhub.clock import SYSTEM_CLOCK, SYSTEM_DICE, Clock, Dice
from shardhub.engine.settings import EngineSettings
from shardhub.errors import ShardhubError
from shardhub.parameters import SamplingParameters
from shardhub.parity import inexactness
from shardhub.protocol import INEXACT
from shardhub.security.keeper import keep
from shardhub.security.trust import PLAIN, Security
from shardhub.shard import Pipeline, other_stage, read_shard
from shardhub.text.stops import StopMatcher
from shardhub.text.tokenizer import Tokenizer
from shardhub.wire.options import DEFAULT_LIVENESS, Liveness

if TYPE_CHECKING:
    from shardhub.engine.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of an answer.

    Attributes:
        text: Text that is final; may be empty.
        token: Id of the token that completed it; None for the last piece.
        finish: Why the answer ended; set on the last piece only.
    """

    text: str
    token: int | None = None
    finish: Finish | None = None


@dataclass(slots=True, kw_only=True)
class Timing:
    """Times of an answer, in seconds since the prompt was sent, and its size in tokens."""

    num_prompt: int = 0
    num_reused: int = 0
    num_generated: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_recoveries: int = 0
    is_exact: bool = True
    started_at: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Decode rate: tokens after the first over the time after the first."""
        elapsed = self.total_s - self.first_token_s
        return (self.num_generated - 1) / elapsed if self.num_generated > 1 and elapsed > 0 else 0.0


class Head:
    """Runs prompts over a chain; create one with `Head.start`.

    Attributes:
        pipeline: The pipeline that runs.
        chain: The live stages.
        scheduler: Runs requests over the chain.
        membership: Adds nodes that come later.
        tokenizer: The pipeline's tokenizer.
        absent: Named nodes that did not answer at the start, and why; `follow` adds them once they do.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        chain: Chain,
        tokenizer: Tokenizer,
        scheduler: Scheduler,
        membership: Membership,
        *,
        absent: Mapping[str, ShardhubError] | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.chain = chain
        self.tokenizer = tokenizer
        self.scheduler = scheduler
        self.membership = membership
        self.absent = dict(absent or {})
        only_named = pipeline.only_named is not None
        self._known_inexact = inexactness(pipeline.folder, pipeline.manifest, only_named=only_named)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def inexact(self) -> str | None:
        """What is known to be inexact about the chain, as stated by its pipeline or else by its nodes."""
        by_nodes = next((text for link in self.chain.links if (text := link.host.get(INEXACT))), None)
        return self._known_inexact or by_nodes

    @classmethod
    async def start(
        cls,
        pipeline: Pipeline,
        nodes: Sequence[str],
        *,
        context: int,
        may_be_less: bool = False,
        budget_bytes: int | None = None,
        mixed: bool = False,
        allow_local: bool = True,
        find: Callable[[int], Path | None] | None = None,
        progress: Callable[[str], None] = lambda _: None,
        liveness: Liveness = DEFAULT_LIVENESS,
        security: Security = PLAIN,
        dialer: Dialer | None = None,
        scheduling: SchedulerSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        dice: Dice = SYSTEM_DICE,
    ) -> Head:
        """Connect to the nodes, load the stages that no node serves, and check each stage against the manifest.

        Args:
            nodes: Addresses, in any order.
            context: Positions that stages of this process serve.
            may_be_less: Whether fewer positions are accepted if memory is short.
            budget_bytes: Memory for stages of this process; None asks the machine.
            mixed: Whether the nodes are those of several pipelines; nodes of the others are then left out.
            allow_local: Whether stages may run in this process.
            find: Returns the folder of a stage's shard on this machine, if it exists; by default looks beside the
                pipeline's folder. Called for the stages that no node serves.
            progress: Called with a description of the current activity.
            liveness, security: How nodes are reached over gRPC.
            dialer: Reaches nodes in place of gRPC.
            scheduling: How requests are scheduled.
            clock, dice: Sources of time and randomness; stages of this process use the machine's.

        Raises:
            ChainError: As `roll_call`; nodes that do not answer are left out if the others serve every stage.
            DoesNotFit: Stages that no node serves are on this machine but do not fit into its memory.
            AddressError, CertificateRefused: A node cannot be reached safely.
        """
        find = find or pipeline.shard_folder
        dialer = dialer or NodeDialer(liveness=liveness, security=security, clock=clock)
        folders: dict[int, Path] = {}

        def is_here(index: int) -> bool:
            if allow_local and index not in folders and (folder := find(index)) is not None:
                folders[index] = folder
            return index in folders

        asking = asyncio.ensure_future(
            roll_call(
                pipeline.manifest, nodes, is_here=is_here, progress=progress, mixed=mixed, dialer=dialer, clock=clock
            )
        )
        try:
            tokenizer = await asyncio.get_running_loop().run_in_executor(None, Tokenizer, pipeline.documents)
            present = await asking
            # Start the tokenizer's process early, so that the first prompt waits less; that prompt gets any error.
            starting = asyncio.get_running_loop().run_in_executor(None, tokenizer.start)
            starting.add_done_callback(lambda done: done.cancelled() or done.exception())
        finally:
            asking.cancel()
            await asyncio.wait({asking})
            if not asking.cancelled():
                asking.exception()  # mark as retrieved: the first error is the one that is raised
        described = [description for _, description in present.nodes]
        assignments = assign_stages(pipeline.manifest, present.nodes, folders)
        links: list[StageLink] = []
        try:
            for assigned in assignments:
                if isinstance(assigned, NodeStages):
                    links.append(dialer.link(assigned.address, assigned.description))
                else:
                    # Stages of this process keep K and V in the nodes' form.
                    kv = described[0].stage.kv if described else None
                    settings = EngineSettings(
                        context=context, budget_bytes=budget_bytes, kv=kv, may_be_less=may_be_less
                    )
                    links.append(LocalLink(await _load_local(pipeline, assigned, folders, settings, progress)))
            chain = await Chain.start(links, clock=clock, dice=dice)
        except BaseException:
            for link in links:
                await link.stop()
            raise

        async def stand_in(place: Place) -> StageLink | None:
            """Load stages of this process in place of a node's, if their shards are here and fit."""
            facts = place.link.facts
            assigned = stages_of(pipeline.manifest, facts)
            there = {number: find(number) for number in range(assigned.first, assigned.last + 1)} if allow_local else {}
            folders = {number: folder for number, folder in there.items() if folder is not None}
            if not allow_local or len(folders) < len(there):
                return None
            # The context the chain has promised, whatever the setting for stages of this process.
            settings = EngineSettings(context=chain.max_context, budget_bytes=budget_bytes, kv=facts.kv)
            return LocalLink(await _load_local(pipeline, assigned, folders, settings, progress))

        scheduler = Scheduler(chain, scheduling, stand_in=stand_in)
        membership = Membership(pipeline.manifest, scheduler, dialer=dialer, mixed=mixed)
        head = cls(pipeline, chain, tokenizer, scheduler, membership, absent=present.absent)
        if security.trust is not None:
            head._tasks.append(asyncio.create_task(keep(security.trust)))
        return head

    async def follow(self, named: Callable[[], Sequence[str]]) -> None:
        """Add nodes that are named later, as long as the head runs; see `Membership.follow`."""
        self._tasks.append(asyncio.create_task(self.membership.follow(named)))

    def introduce_nodes(self) -> None:
        """Tell the nodes of each other as long as the head runs, so that they hand each other weight files."""
        self._tasks.append(asyncio.create_task(introduce_nodes(self.chain)))

    @property
    def served(self) -> tuple[ServedStages, ...]:
        """Who serves which stages now: in stage order, replicas side by side; later additions come last."""
        return served_stages(self.pipeline.manifest, self.chain.paths)

    @property
    def capacity(self) -> Capacity:
        """How much the chain runs at once."""
        return capacity_of(self.chain)

    @property
    def vocab_size(self) -> int:
        """Exclusive upper bound of ids in prompts and biases: the model's, or the tokenizer's if no config has one."""
        return self.chain.vocab_size or self.tokenizer.vocab_size

    @property
    def gaps(self) -> tuple[Place, ...]:
        """The last place to have served each stage that nothing serves now."""
        return tuple(self.chain.paths.gaps)

    @property
    def problem(self) -> ShardhubError | None:
        """Why no request can run now; None if one can."""
        return next((place.error for place in self.gaps), None)

    def local_loads(self) -> list[dict[str, float]]:
        """Load figures of each stage of this process."""
        links = (place.link for place in self.chain.paths.in_use)
        return [link.engine.load() for link in links if isinstance(link, LocalLink)]

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped, so that it refuses requests."""
        return self.scheduler.is_closed

    async def stop(self) -> None:
        """End all requests and close the chain."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.scheduler.stop()
        await self.chain.stop()

    def describe_stages(self) -> list[dict[str, object]]:
        """Where each stage runs, as JSON-able data."""
        return describe_stages(self.pipeline.manifest, self.chain.paths)

    def line(self) -> str:
        """Describe the chain in one line: layers, addresses, and the speeds measured between neighbours."""
        return chain_line(self.chain.paths)

    async def answer(
        self,
        prompt: Sequence[int],
        parameters: SamplingParameters,
        *,
        max_tokens: int,
        stops: Sequence[str] = (),
        tenant: str = "",
        reuse: bool = True,
        drafter: Drafter | None = None,
        timing: Timing | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> AsyncGenerator[Piece, None]:
        """Answer a prompt; its session is freed or parked on every node when the answer ends or is cancelled.

        Args:
            prompt: Token ids.
            max_tokens: Most tokens of the answer.
            stops: Strings that end the answer; they are not part of it.
            tenant: Owner of the request.
            reuse: Whether KV of earlier prompts with the same beginning may be used, and this prompt's kept.
            drafter: Guesses tokens that are verified together; None decodes one by one.
            timing: Filled in as the answer comes.
            progress: Called with the number of prompt ids done and the total.

        Raises:
            PromptError, ContextExceeded: The prompt cannot be run.
            ChainError: A stage failed.
        """
        timing = timing or Timing()
        timing.num_prompt = len(prompt)
        timing.started_at = self.chain.clock.now()
        matcher = StopMatcher(stops)
        request = Request(
            prompt=prompt,
            parameters=parameters,
            max_tokens=max_tokens,
            end_ids=self.tokenizer.eos_ids,
            tenant=tenant,
            reuse=reuse,
            drafter=drafter,
            progress=progress,
        )
        with TextStream(self.scheduler, request, self.tokenizer.detokenizer()) as stream:
            async for decoded in stream:
                _note_time(timing, stream, self.chain.clock.now())
                text = matcher.feed(decoded.text) if matcher.stop is None else ""
                if decoded.token is not None:
                    if matcher.stop is not None:
                        stream.end()
                    yield Piece(text=text, token=decoded.token.id)
                    continue
                if matcher.stop is None:
                    text += matcher.finish()
                yield Piece(text=text, finish=stream.finish if matcher.stop is None else "stop")


def _note_time(timing: Timing, answer: TextStream, now: float) -> None:
    if timing.num_generated == answer.num_tokens:
        return
    timing.total_s = now - timing.started_at
    timing.num_generated = answer.num_tokens
    stream = answer.tokens
    timing.num_reused = stream.num_reused
    timing.num_drafted, timing.num_accepted = stream.num_drafted, stream.num_accepted
    timing.num_recoveries, timing.is_exact = stream.num_recoveries, stream.is_exact
    if timing.num_generated == 1:
        timing.first_token_s = timing.total_s


async def _load_local(
    pipeline: Pipeline,
    assigned: LocalStages,
    folders: dict[int, Path],
    settings: EngineSettings,
    progress: Callable[[str], None],
) -> Engine:
    shards = [read_shard(folders[index]) for index in range(assigned.first, assigned.last + 1)]
    stages = pipeline.manifest.stages[assigned.first : assigned.last + 1]
    progress(
        f"stage {assigned.first}"
        + (f" to {assigned.last}" if assigned.last > assigned.first else "")
        + " runs in this process"
    )
    for shard, entry in zip(shards, stages, strict=True):
        if shard.digest != entry.digest:
            raise other_stage(str(shard.folder), shard.digest, entry.digest)
    from shardhub.engine.engine import Engine  # loads MLX, which a head without stages of its own does not need

    return await asyncio.get_running_loop().run_in_executor(
        None, lambda: Engine.start(shards, settings, progress=progress)
    )
