"""The head: a pipeline, the nodes that serve it, and what a user wants of it: text for a prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.chain.assignment import LocalStages, NodeStages, assign_stages, stages_of
from shardhub.chain.chain import Chain
from shardhub.chain.drafts import Drafter
from shardhub.chain.links import LocalLink, NodeDialer
from shardhub.chain.membership import Membership
from shardhub.chain.place import Place
from shardhub.chain.request import Request
from shardhub.chain.roll_call import roll_call
from shardhub.chain.scheduler import Scheduler
from shardhub.chain.served import Capacity, ServedStages, capacity_of, chain_line, describe_stages, served_stages
from shardhub.chain.settings import SchedulerSettings
from shardhub.chain.stage_link import Dialer, StageLink
from shardhub.chain.stream import Finish, Stream
from shardhub.engine.settings import EngineSettings
from shardhub.errors import DigestMismatch, ShardhubError
from shardhub.parameters import SamplingParameters
from shardhub.parity import inexactness
from shardhub.protocol import INEXACT
from shardhub.security.keeper import keep
from shardhub.security.trust import PLAIN, Security
from shardhub.shard import Pipeline, read_shard
from shardhub.text.stops import StopMatcher
from shardhub.text.tokenizer import Tokenizer
from shardhub.wire.options import DEFAULT_LIVENESS, Liveness

if TYPE_CHECKING:
    from shardhub.engine.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of an answer.

    Attributes:
        text: Text that is certain now; may be empty.
        token: Id of the token that brought it; None for the last piece.
        finish: Set on the last piece.
    """

    text: str
    token: int | None = None
    finish: Finish | None = None


@dataclass(slots=True, kw_only=True)
class Timing:
    """How long an answer took, in seconds since the prompt was sent, and its size in tokens."""

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
    """Runs prompts over a chain. Make it with `Head.start`.

    Attributes:
        pipeline: What is run.
        chain: The live stages.
        scheduler: Runs requests over them.
        membership: Takes in nodes that come later.
        tokenizer: The pipeline's.
        absent: Nodes that were named and did not answer when it started, and why; `follow` takes them in.
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
        """What is known to be inexact about the chain: by its pipeline, else by the nodes that serve it."""
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
        allow_local: bool = True,
        find: Callable[[int], Path | None] | None = None,
        progress: Callable[[str], None] = lambda _: None,
        liveness: Liveness = DEFAULT_LIVENESS,
        security: Security = PLAIN,
        dialer: Dialer | None = None,
        scheduling: SchedulerSettings | None = None,
    ) -> Head:
        """Connect to the nodes, load the stages that nobody serves, and check all against the manifest.

        Args:
            nodes: Addresses, any order.
            context: Positions that stages of this process serve.
            may_be_less: Whether fewer will do where memory is short.
            budget_bytes: Memory for stages of this process; None asks the machine.
            allow_local: Whether stages may run in this process.
            find: Folder of a stage's shard on this machine, if it is there; by default beside the pipeline's.
                Asked for the stages that no node serves.
            progress: Told what is being done.
            liveness, security: How nodes are reached over gRPC.
            dialer: Reaches them instead.
            scheduling: How requests are scheduled.

        Raises:
            ChainError: As `roll_call`; nodes that do not answer are left out where the others serve every stage.
            DoesNotFit: Stages nobody serves are here but do not fit.
            AddressError, CertificateRefused: A node cannot be reached safely.
        """
        find = find or pipeline.shard_folder
        dialer = dialer or NodeDialer(liveness=liveness, security=security)
        folders: dict[int, Path] = {}

        def is_here(index: int) -> bool:
            if allow_local and index not in folders and (folder := find(index)) is not None:
                folders[index] = folder
            return index in folders

        asking = asyncio.ensure_future(
            roll_call(pipeline.manifest, nodes, is_here=is_here, progress=progress, dialer=dialer)
        )
        try:
            tokenizer = await asyncio.get_running_loop().run_in_executor(None, Tokenizer, pipeline.documents)
            present = await asking
            # The first prompt waits for the tokenizer's process as little as can be; what is wrong with it, it is told.
            starting = asyncio.get_running_loop().run_in_executor(None, tokenizer.start)
            starting.add_done_callback(lambda done: done.cancelled() or done.exception())
        finally:
            asking.cancel()
            await asyncio.wait({asking})
            if not asking.cancelled():
                asking.exception()  # seen: the first error is the one that is raised
        described = [description for _, description in present.nodes]
        assignments = assign_stages(pipeline.manifest, present.nodes, folders)
        links: list[StageLink] = []
        try:
            for assigned in assignments:
                if isinstance(assigned, NodeStages):
                    links.append(dialer.link(assigned.address, assigned.description))
                else:
                    # Stages here keep K and V as the nodes do.
                    kv = described[0].stage.kv if described else None
                    settings = EngineSettings(
                        context=context, budget_bytes=budget_bytes, kv=kv, may_be_less=may_be_less
                    )
                    links.append(LocalLink(await _load_local(pipeline, assigned, folders, settings, progress)))
            chain = await Chain.start(links)
        except BaseException:
            for link in links:
                await link.stop()
            raise

        async def stand_in(place: Place) -> StageLink | None:
            """Stages of this process in a node's stead, if their shards are here and fit."""
            facts = place.link.facts
            assigned = stages_of(pipeline.manifest, facts)
            there = {number: find(number) for number in range(assigned.first, assigned.last + 1)} if allow_local else {}
            folders = {number: folder for number, folder in there.items() if folder is not None}
            if not allow_local or len(folders) < len(there):
                return None
            # What the chain has promised, whatever stages of this process were to serve.
            settings = EngineSettings(context=chain.max_context, budget_bytes=budget_bytes, kv=facts.kv)
            return LocalLink(await _load_local(pipeline, assigned, folders, settings, progress))

        scheduler = Scheduler(chain, scheduling, stand_in=stand_in)
        membership = Membership(pipeline.manifest, scheduler, dialer=dialer)
        head = cls(pipeline, chain, tokenizer, scheduler, membership, absent=present.absent)
        if security.trust is not None:
            head._tasks.append(asyncio.create_task(keep(security.trust)))
        return head

    async def follow(self, named: Callable[[], Sequence[str]]) -> None:
        """Take in nodes that are named later, as long as the head runs; see `Membership.follow`."""
        self._tasks.append(asyncio.create_task(self.membership.follow(named)))

    @property
    def served(self) -> tuple[ServedStages, ...]:
        """Who serves which stages now: in stage order, replicas side by side; those that came later are last."""
        return served_stages(self.pipeline.manifest, self.chain.paths)

    @property
    def capacity(self) -> Capacity:
        """How much runs at once."""
        return capacity_of(self.chain)

    @property
    def vocab_size(self) -> int:
        """Ids of prompts and biases are below it: the model's, or the tokenizer's where a config does not say."""
        return self.chain.vocab_size or self.tokenizer.vocab_size

    @property
    def gaps(self) -> tuple[Place, ...]:
        """Of each stage that nothing serves now, the place that did so last."""
        return tuple(self.chain.paths.gaps)

    @property
    def problem(self) -> ShardhubError | None:
        """Why no request could be run now, if that is so."""
        return next((place.error for place in self.gaps), None)

    def local_loads(self) -> list[dict[str, float]]:
        """What each stage of this process is busy with."""
        links = (place.link for place in self.chain.paths.in_use)
        return [link.engine.load() for link in links if isinstance(link, LocalLink)]

    async def stop(self) -> None:
        """End all requests and close the chain."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.scheduler.stop()
        await self.chain.stop()

    def describe_stages(self) -> list[dict[str, object]]:
        """Where each stage runs, for people and `--json`."""
        return describe_stages(self.pipeline.manifest, self.chain.paths)

    def line(self) -> str:
        """The chain in one line: layers, addresses, and what was measured between neighbours."""
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
        """Answer a prompt; its session is freed on every node, or parked, when the answer ends or is given up.

        Args:
            prompt: Token ids.
            max_tokens: Most tokens of the answer.
            stops: Strings that end it; they are not part of it.
            tenant: Whose request it is.
            reuse: Whether KV of earlier prompts that begin alike may be used, and this one's kept.
            drafter: Guesses tokens that are verified together; None goes one by one.
            timing: Filled in as the answer comes.
            progress: Told of prompt ids done and in all.

        Raises:
            PromptError, ContextExceeded: The prompt cannot be run.
            ChainError: A stage failed.
        """
        timing = timing or Timing()
        timing.num_prompt = len(prompt)
        timing.started_at = self.chain.clock.now()
        detokenizer = self.tokenizer.detokenizer()
        matcher = StopMatcher(stops)
        finish: Finish = "length"
        stream = self.scheduler.submit(
            Request(
                prompt=prompt,
                parameters=parameters,
                max_tokens=max_tokens,
                end_ids=self.tokenizer.eos_ids,
                tenant=tenant,
                reuse=reuse,
                drafter=drafter,
                progress=progress,
            )
        )
        try:
            async for token in stream:
                _note_time(timing, stream, self.chain.clock.now())
                if token.is_end:
                    finish = "stop"
                    break
                text = matcher.feed(detokenizer.add(token.id))
                if matcher.found is not None:
                    finish = "stop"
                    stream.stop()
                yield Piece(text=text, token=token.id)
                if matcher.found is not None:
                    break
        finally:
            stream.cancel()
        rest = matcher.feed(detokenizer.finish()) + matcher.finish() if matcher.found is None else ""
        if matcher.found is not None:
            finish = "stop"
        yield Piece(text=rest, finish=finish)


def _note_time(timing: Timing, stream: Stream, now: float) -> None:
    timing.total_s = now - timing.started_at
    timing.num_generated += 1
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
        _check_shard(shard.digest, entry.digest, shard.folder)
    from shardhub.engine.engine import Engine  # loads MLX, which a head without stages of its own needs not have

    return await asyncio.get_running_loop().run_in_executor(
        None, lambda: Engine.start(shards, settings, progress=progress)
    )


def _check_shard(found: str, expected: str, folder: Path) -> None:
    """Refuse a shard folder that is not the one the manifest names.

    Raises:
        DigestMismatch: It holds another stage.
    """
    if found != expected:
        raise DigestMismatch(
            f"{folder} is not the shard the manifest names.",
            why=f"Its stage digest is {found[:16]}..., the manifest says {expected[:16]}....",
            hint="Split the model again, or get the pipeline and its shards from one publisher.",
        )
