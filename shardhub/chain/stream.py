"""One request on its way: a prompt, the session that runs it, and the tokens that wait for whoever asked."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from shardhub.chain.failures import is_recoverable
from shardhub.chain.request import Request
from shardhub.chain.session import ChainSession, RowToSend
from shardhub.chain.status import Status
from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.errors import Overloaded, ShardhubError
from shardhub.protocol import RowResult, TopTokens

T = TypeVar("T")

Finish = Literal["stop", "length"]
# Tokens that wait for a reader who is slow; then the stream takes no further steps until they are read.
MAX_UNREAD = 256
_NONE = TopTokens()


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A generated token.

    Attributes:
        id: Its id.
        logprob: Log probability before temperature and filters.
        is_end: It is one of the end-of-sequence ids.
        top: The likeliest tokens in its place, if the parameters ask for any.
    """

    id: int
    logprob: float
    is_end: bool
    top: TopTokens = _NONE


class Stream:
    """A request's tokens, in order; iterate over it.

    Args:
        request: What is asked.
        drew: Told of new tokens: how many, and the seconds since the ones before, or since the request.
        clock: The chain's.

    Attributes:
        request: What was asked.
        num_reused: Prompt ids whose KV was there already.
        status: Where it is in its life.
        finish: Why it finished, once it has.
        num_drafted, num_accepted: Tokens guessed, and how many of them were right.
        prompt_logprobs, prompt_top: If asked for: of the prompt's ids from the second on, once there is a token.
        interruption: The failure that broke its last step, until its session is brought back.
        num_recoveries: How often it went on after one.
        lost_at: When a node failed it first since its last progress, on the monotonic clock; None if none has.
        is_exact: Whether its tokens are those of a run without failures, as far as one numeric class promises it.
        ended: Set once its session is parked or gone.
    """

    def __init__(
        self,
        request: Request,
        *,
        drew: Callable[[Stream, int, float], None] = lambda stream, num_tokens, seconds: None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._clock = clock
        self.request = request
        self._drew = drew
        self.num_reused = 0
        self.num_generated = 0
        self.num_drafted = 0
        self.num_accepted = 0
        self.prompt_logprobs: list[float] = []
        self.prompt_top: list[TopTokens] = []
        self.status = Status.WAITING
        self.finish: Finish | None = None
        self.ended = asyncio.Event()
        self.interruption: ShardhubError | None = None
        self.num_recoveries = 0
        self.lost_at: float | None = None
        self.is_exact = True
        self._drawn_at = self._clock.now()
        self._session: ChainSession | None = None
        self._most_positions = 0
        self._answer: list[int] = []
        self._discard = 0
        self._rewind_limit = 0
        self._unread: deque[Token] = deque()
        self._error: BaseException | None = None
        self._left: asyncio.Future[None] | None = None
        self._resume: Callable[[], None] | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._news = asyncio.Event()

    @property
    def session(self) -> ChainSession:
        """The session that runs it."""
        assert self._session is not None
        return self._session

    @property
    def is_served(self) -> bool:
        """Whether a session runs it, which will end and make room."""
        return self._session is not None

    @property
    def will_be_kept(self) -> bool:
        """Whether it has ended well, so that its KV is kept for prompts that begin alike; it waits for no other."""
        return self.request.reuse and self.status is Status.FINISHED and self.interruption is None

    @property
    def error(self) -> BaseException | None:
        """What ended it, if that was an error."""
        return self._error

    @property
    def is_done(self) -> bool:
        """Whether it takes no further step."""
        return self.status.is_end

    @property
    def is_full(self) -> bool:
        """Whether its reader is so far behind that it waits."""
        return len(self._unread) >= MAX_UNREAD

    @property
    def answer(self) -> list[int]:
        """Tokens so far."""
        return self._answer

    def begin(self, session: ChainSession, *, rewind_limit: int, most_positions: int | None = None) -> None:
        """Take the session that runs it.

        Args:
            most_positions: What it may grow to, where the session was opened for less.
            rewind_limit: Most positions from which it can go back: beyond them nothing is guessed, as wrong guesses
                could not be taken back.
        """
        self._session = session
        self._rewind_limit = rewind_limit
        self._most_positions = max(session.context, most_positions or 0)
        self._become(Status.RUNNING)

    def _become(self, status: Status) -> None:
        """Go on to another status; a stream that has ended stays as it is.

        Raises:
            ValueError: No stream goes from one to the other.
        """
        if self.is_done:
            return
        if not self.status.may_become(status):
            raise ValueError(f"A stream that is {self.status.value} does not become {status.value}.")
        self.status = status
        if status.is_end:
            self._over.set_result(None)

    @property
    def _is_outgrown(self) -> bool:
        """Whether its session is full, and it may go on in a larger one."""
        return self.kept_ids() >= self.session.context < self._most_positions

    @property
    def next_context(self) -> int:
        """Positions of the larger session: twice as many for the answer."""
        num_prompt = len(self.request.prompt)
        return min(self._most_positions, num_prompt + 2 * max(1, self.session.context - num_prompt))

    def move_to(self, session: ChainSession | None) -> None:
        """Go on in another session that holds what this one held; None while there is room for none."""
        self._session = session
        self._discard = 0
        self._become(Status.RUNNING if session is not None else Status.WAITING)

    def next_row(self) -> RowToSend:
        """What its next step sends: the last token, or the prompt's last id, and drafts of those that follow."""
        session, request = self.session, self.request
        drafts: list[int] = []
        kept = self.kept_ids()
        room = min(request.max_tokens - self.num_generated, min(session.context, self._rewind_limit) - kept) - 1
        if request.drafter is not None and request.grammar is None and room > 0:
            drafts = list(request.drafter([*request.prompt, *self._answer]))[:room]
            self.num_drafted += len(drafts)
        mask = request.grammar.mask if request.grammar is not None else None
        last = self._answer[-1] if self._answer else request.prompt[-1]
        return RowToSend(session=session, ids=[last, *drafts], sample=True, discard=self._discard, mask=mask)

    def take(self, row: RowResult, num_sent: int) -> None:
        """Take in what a step drew.

        Args:
            row: The result.
            num_sent: Ids the step carried.
        """
        self._discard = num_sent - len(row.tokens)
        self.num_accepted += len(row.tokens) - 1
        num_before = self.num_generated
        tops = row.top or (_NONE,) * len(row.tokens)
        for token, logprob, top in zip(row.tokens, row.logprobs, tops, strict=True):
            if self.is_done:
                break
            self.num_generated += 1
            self._answer.append(token)
            is_end = token in self.request.end_ids
            position = self.session.position - self._discard
            if is_end:
                self._end("stop")
            elif self.num_generated >= self.request.max_tokens or position >= self._most_positions:
                self._end("length")
            if self.request.grammar is not None and not is_end:
                self.request.grammar.accept(token)
            self._unread.append(Token(id=token, logprob=logprob, is_end=is_end, top=top))
        if self.num_generated > num_before:
            self.made_progress()
            before, self._drawn_at = self._drawn_at, self._clock.now()
            self._drew(self, self.num_generated - num_before, self._drawn_at - before)
        if self._is_outgrown:
            self._become(Status.OUTGROWN)
        self._news.set()

    def kept_ids(self) -> int:
        """Positions of the session that hold what was really said: wrong drafts come after them."""
        return self.session.position - self._discard

    def end_full(self) -> None:
        """End it where it is: there is no room for more."""
        self._end("length")
        self._news.set()

    def _end(self, finish: Finish) -> None:
        if not self.is_done:
            self.finish = finish
            self._become(Status.FINISHED)

    def fail(self, error: BaseException) -> None:
        """End it with an error, once what was drawn before has been read."""
        if not self.is_done:
            self._error = error
            self._become(Status.FAILED)
        self._news.set()

    def stop(self) -> None:
        """Its reader has what it wants: it takes no further step, and its KV may be kept."""
        self._end("stop")
        self.cancel()

    def cancel(self) -> None:
        """Nobody reads it any more: it takes no further step."""
        self._become(Status.CANCELLED)
        self._news.set()
        self._drained()

    def pause(self, resume: Callable[[], None]) -> None:
        """Take no step until its reader has caught up, or is gone; `resume` is called then."""
        self._become(Status.PAUSED)
        self._resume = resume

    def _drained(self) -> None:
        """Its reader is not behind any more."""
        resume, self._resume = self._resume, None
        if resume is not None:
            self._become(Status.RUNNING)
            resume()

    async def while_wanted(self, work: Awaitable[T]) -> T:
        """Do some work for whoever reads the stream; once nobody does, the work is cancelled.

        Raises:
            Overloaded: The stream ended before the work was done.
        """
        task = asyncio.ensure_future(work)
        try:
            if not self._over.done():
                await asyncio.wait((task, self._over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
        if task.cancelled():
            raise Overloaded("The request was given up while it waited.")
        return task.result()

    def interrupt(self, error: BaseException) -> None:
        """A step failed: leave the microbatch to go on elsewhere if that can help, or end with the error."""
        if isinstance(error, ShardhubError) and is_recoverable(error) and not self.is_done:
            self.interruption = error
            self._become(Status.INTERRUPTED)
        else:
            self.fail(error)

    def since_lost(self) -> float:
        """Note that a node failed it, and return the seconds since the first failure after its last progress."""
        now = self._clock.now()
        if self.lost_at is None:
            self.lost_at = now
        return now - self.lost_at

    def made_progress(self) -> None:
        """All stages hold more of its prompt, or its answer is longer: the next failure has its own time."""
        self.lost_at = None

    @property
    def num_held(self) -> int:
        """Positions the session must hold before the next step: the prompt, and the answer but for its last token."""
        return len(self.request.prompt) + self.num_generated - 1

    def go_on(self) -> None:
        """Its session holds what it must again."""
        self._discard = 0
        self.interruption = None
        self.num_recoveries += 1
        self._become(Status.OUTGROWN if self._is_outgrown else Status.RUNNING)

    def enter(self) -> asyncio.Future[None]:
        """Its steps begin to travel with others'; the future is done once it has left them."""
        self._left = asyncio.get_running_loop().create_future()
        return self._left

    def leave(self) -> None:
        """No step of it is on its way any more."""
        if self._left is not None and not self._left.done():
            self._left.set_result(None)

    async def __aiter__(self) -> AsyncIterator[Token]:
        while True:
            while self._unread:
                token = self._unread.popleft()
                if len(self._unread) == MAX_UNREAD // 2:
                    self._drained()
                yield token
            if self._error is not None:
                raise self._error
            if self.is_done:
                return
            self._news.clear()
            await self._news.wait()
