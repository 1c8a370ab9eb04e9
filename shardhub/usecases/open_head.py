"""A head for programs: a context manager for threads and for coroutines that connects to a pipeline's nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import AsyncExitStack, ExitStack, aclosing, contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from shardhub.chain.head import Head as ChainHead
from shardhub.chain.head import Piece
from shardhub.chain.request import Request
from shardhub.errors import HeadClosed, RouteError, UsageError
from shardhub.gateway.segmenters import Segmenters
from shardhub.parameters import SamplingParameters
from shardhub.usecases.answer import GREEDY, Answer, HeadStatus, Prompt, Sampling, ScoredToken, StagesAt
from shardhub.usecases.block import Block
from shardhub.usecases.collected import Collected
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.start_head import HeadSettings, Starting
from shardhub.usecases.watcher import SILENT, Watcher

T = TypeVar("T")


class AnswerStream:
    """Iterator over the pieces of an answer; cancel it by `close`, as leaving the loop does not end it."""

    def __init__(self, pieces: Generator[Piece, None, None], collected: Collected) -> None:
        self._pieces = pieces
        self._collected = collected

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """Cancel the answer; its session is freed on every node."""
        self._pieces.close()

    @property
    def answer(self) -> Answer:
        """The answer so far, complete after the last piece."""
        return self._collected.answer()

    @property
    def opening(self) -> str:
        """What the chat template wrote after the last message; known once there is a piece, empty for other prompts."""
        return self._collected.opening


class AsyncAnswerStream:
    """Asynchronous iterator over the pieces of an answer; cancel it by `aclose`."""

    def __init__(self, pieces: AsyncGenerator[Piece, None], collected: Collected) -> None:
        self._pieces = pieces
        self._collected = collected

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Cancel the answer; its session is freed on every node."""
        await self._pieces.aclose()

    @property
    def answer(self) -> Answer:
        """The answer so far, complete after the last piece."""
        return self._collected.answer()

    @property
    def opening(self) -> str:
        """What the chat template wrote after the last message; known once there is a piece, empty for other prompts."""
        return self._collected.opening


class AsyncHead:
    """Runs prompts over a chain, for coroutines of the loop that opened it."""

    def __init__(self, head: ChainHead, watcher: Watcher) -> None:
        self._head = head
        self._watcher = watcher
        self._loop = asyncio.get_running_loop()

    async def answer(self, prompt: Prompt, sampling: Sampling = GREEDY, *, raw: bool = False) -> Answer:
        """Answer a prompt.

        Args:
            prompt: Text, which is one user message; the messages of a chat; or token ids.
            sampling: How tokens are chosen.
            raw: Send text as it is, without the chat template.

        Raises:
            PromptError: The prompt cannot be run; `ContextExceeded`: it is too long.
            ChainError: A stage failed and could not be recovered; `HeadClosed`: the head was closed meanwhile.
            UsageError: The head is closed, or belongs to another loop.
        """
        stream = self.stream(prompt, sampling, raw=raw)
        async for _ in stream:
            pass
        return stream.answer

    async def chat(self, messages: Sequence[Mapping[str, str]], sampling: Sampling = GREEDY) -> Answer:
        """Answer a chat with its next message.

        Args:
            messages: Each with `role` (`system`, `user`, `assistant`) and `content`.
            sampling: How tokens are chosen.

        Raises:
            As `answer`.
        """
        return await self.answer(messages, sampling)

    def stream(self, prompt: Prompt, sampling: Sampling = GREEDY, *, raw: bool = False) -> AsyncAnswerStream:
        """Answer a prompt piece by piece; arguments and errors as for `answer`."""
        collected = Collected(sampling)
        return AsyncAnswerStream(self._pieces(collected, prompt, raw=raw), collected)

    async def score(self, prompt: str | Sequence[int]) -> tuple[ScoredToken, ...]:
        """Return the log probability of each token of a text, given those before it.

        Args:
            prompt: Text, sent as it is, or token ids; at least two tokens.

        Raises:
            PromptError: The prompt cannot be run.
            ChainError: A stage failed.
            UsageError: The head is closed, or belongs to another loop.
        """
        self._check()
        tokenizer = self._head.tokenizer
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        stream = self._head.scheduler.submit(
            Request(prompt=ids, parameters=SamplingParameters(), max_tokens=1, reuse=False, score=True)
        )
        try:
            async for _ in stream:
                pass
        finally:
            stream.cancel()
        logprobs = (None, *stream.prompt_logprobs)
        return tuple(
            ScoredToken(id=token, text=tokenizer.token_bytes(token).decode("utf-8", "replace"), logprob=logprob)
            for token, logprob in zip(ids, logprobs, strict=True)
        )

    def status(self) -> HeadStatus:
        """Where each stage runs now.

        Raises:
            UsageError: The head is closed.
        """
        self._check_open()
        head = self._head
        return HeadStatus(
            pipeline=head.pipeline.manifest.name,
            pipeline_id=head.pipeline.manifest.pipeline_id,
            context=head.capacity.max_context,
            stages=tuple(_stages_at(row) for row in head.describe_stages()),
            inexact=head.inexact,
        )

    @cached_property
    def segmenters(self) -> Segmenters:
        """Makes segmenters, which tell the model's reasoning from its answers."""
        return Segmenters(self._head.tokenizer)

    async def _pieces(self, collected: Collected, prompt: Prompt, *, raw: bool) -> AsyncGenerator[Piece, None]:
        self._check()
        async with aclosing(collected.run(self._head, prompt, self._watcher, raw=raw)) as pieces:
            async for piece in pieces:
                yield piece

    def _check(self) -> None:
        self._check_open()
        if asyncio.get_running_loop() is not self._loop:
            raise UsageError(
                "This head belongs to another event loop.",
                why="Only coroutines of the loop that opened it can use it.",
                hint="Open a head in each loop, or one with `with` instead of `async with`, which any thread can use.",
            )

    def _check_open(self) -> None:
        if self._head.is_stopped:
            raise UsageError(
                "This head is closed.",
                why="The block that opened it has ended.",
                hint="Use it inside its block, or open another one with `open_head`.",
            )


class Head:
    """Runs prompts over a chain, for the threads of a program. Its methods are `AsyncHead`'s, but block."""

    def __init__(self, head: AsyncHead, loop: LoopThread) -> None:
        self._head = head
        self._loop = loop

    def answer(self, prompt: Prompt, sampling: Sampling = GREEDY, *, raw: bool = False) -> Answer:
        """Answer a prompt; see `AsyncHead.answer`."""
        return self._wait(lambda: self._head.answer(prompt, sampling, raw=raw))

    def chat(self, messages: Sequence[Mapping[str, str]], sampling: Sampling = GREEDY) -> Answer:
        """Answer a chat with its next message; see `AsyncHead.chat`."""
        return self._wait(lambda: self._head.chat(messages, sampling))

    def stream(self, prompt: Prompt, sampling: Sampling = GREEDY, *, raw: bool = False) -> AnswerStream:
        """Answer a prompt piece by piece; see `AsyncHead.answer`."""
        self._head._check_open()
        collected = Collected(sampling)
        pieces = self._loop.iterate(self._head._pieces(collected, prompt, raw=raw))
        return AnswerStream(_until_closed(pieces), collected)

    def score(self, prompt: str | Sequence[int]) -> tuple[ScoredToken, ...]:
        """Return the log probability of each token of a text; see `AsyncHead.score`."""
        return self._wait(lambda: self._head.score(prompt))

    def status(self) -> HeadStatus:
        """Where each stage runs now; see `AsyncHead.status`."""

        async def read() -> HeadStatus:
            return self._head.status()

        return self._wait(read)

    @property
    def segmenters(self) -> Segmenters:
        """Makes segmenters, which tell the model's reasoning from its answers."""
        return self._head.segmenters

    def _wait(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self._head._check_open()
        with _naming_the_end():
            return self._loop.wait(call())


def _until_closed(pieces: Generator[Piece, None, None]) -> Generator[Piece, None, None]:
    with _naming_the_end():
        yield from pieces


@contextmanager
def _naming_the_end() -> Iterator[None]:
    """Turn the cancellation of everything at the end of a head's block into an error."""
    try:
        yield
    except CancelledError:
        raise HeadClosed(
            "The head was closed before the call was complete.",
            hint="Wait for the calls of other threads in its block.",
        ) from None


class OpenHead(Block[Head]):
    """A head as a context manager, for `with` and for `async with`; see `open_head`."""

    def __init__(self, settings: HeadSettings, watcher: Watcher) -> None:
        super().__init__()
        self._settings = settings
        self._watcher = watcher
        self._async_stack = AsyncExitStack()

    def _start(self, stack: ExitStack) -> Head:
        loop = stack.enter_context(LoopThread())
        starting = Starting(self._settings, self._watcher)
        try:
            head = loop.wait(starting.start())
        except RouteError as error:
            starting.fetch_lacking(error)
            head = loop.wait(starting.start())
        stack.callback(head.tokenizer.close)
        stack.callback(lambda: loop.wait(head.stop()))
        return Head(loop.wait(_bound(head, self._watcher)), loop)

    async def __aenter__(self) -> AsyncHead:
        with self._entering():
            starting = await asyncio.to_thread(Starting, self._settings, self._watcher)
            try:
                head = await starting.start()
            except RouteError as error:
                await asyncio.to_thread(starting.fetch_lacking, error)
                head = await starting.start()
        self._async_stack.callback(head.tokenizer.close)
        self._async_stack.push_async_callback(head.stop)
        return AsyncHead(head, self._watcher)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._async_stack.aclose()
        finally:
            self._is_entered = False


async def _bound(head: ChainHead, watcher: Watcher) -> AsyncHead:
    """A head that belongs to the running loop."""
    return AsyncHead(head, watcher)


def open_head(settings: HeadSettings | str | Path, watcher: Watcher = SILENT) -> OpenHead:
    """Connect to the nodes of a pipeline, for as long as a `with` or `async with` block runs.

    Stages that no node serves run in this process if their shards are on this machine.

    Args:
        settings: The pipeline and its nodes, or only the pipeline's folder or Hub id.
        watcher: Notified of the current activity, and of nodes that come and go; asked before shards are fetched.

    Returns:
        A context manager that gives a `Head`, or an `AsyncHead` with `async with`.

    Raises:
        RouteError: A stage has no server.
        HandshakeError: A node serves something else.
        NodeUnreachable, CertificateRefused: A node cannot be reached, or not safely.
        SignatureError: The pipeline is not signed with the required key.
        NotFound, AccessError, HubUnreachable: The pipeline cannot be fetched.
    """
    return OpenHead(HeadSettings.of(settings), watcher)


def _stages_at(row: Mapping[str, Any]) -> StagesAt:
    start, stop = row["layers"]
    return StagesAt(
        stages=tuple(row["stages"]),
        layers=(start, stop),
        at=row["at"],
        next=row["next"],
        round_trip_s=row.get("round_trip_s"),
        bytes_per_s=row.get("bytes_per_s"),
    )
