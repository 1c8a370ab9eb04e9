"""A stream: one running request, its session, and the tokens that wait for its reader."""

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
# Most tokens that wait for a slow reader; then the stream takes no further step until they are read.
MAX_UNREAD = 256
_NONE = TopTokens()


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A generated token.

    Attributes:
        id: Its id.
        logprob: Log probability before temperature and filters.
        is_end: Whether it is one of the end-of-sequence ids.
        top: The likeliest tokens at its position, if the parameters ask for any.
    """

    id: int
    logprob: float
    is_end: bool
    top: TopTokens = _NONE


class Stream:
    """The tokens of a request, in order, by asynchronous iteration.

    Args:
        request: The request.
        drew: Called with the number of new tokens, and the seconds since the previous ones or since the request.
        finished: Called when its answer has ended well.
        clock: The chain's.

    Attributes:
        request: The request.
        num_reused: Prompt ids whose KV was reused.
        status: Where it is in its life cycle.
        finish: Why it finished, once it has.
        num_drafted, num_accepted: Tokens guessed, and how many of them were right.
        prompt_logprobs, prompt_top: If requested, of the prompt's ids from the second on, once there is a token.
        interruption: The failure of its last step, until its session is restored.
        num_recoveries: How often it went on after a failure.
        lost_at: Monotonic time of the first failure of a node since its last progress; None if none has failed.
        is_exact: Whether its tokens are those of a run without failures, as far as one numeric class promises it.
        ended: Set once its session is parked or freed.
    """

    def __init__(
        self,
        request: Request,
        *,
        drew: Callable[[Stream, int, float], None] = lambda stream, num_tokens, seconds: None,
        finished: Callable[[Stream], None] = lambda stream: None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._clock = clock
        self.request = request
        self._drew = drew
        self._finished = finished
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
        """Whether it has a session, which will end and make room."""
        return self._session is not None

    @property
    def will_be_kept(self) -> bool:
        """Whether it has ended well, so that its KV is kept for later prompts that begin alike."""
        return self.request.reuse and self.status is Status.FINISHED and self.interruption is None

    @property
    def error(self) -> BaseException | None:
        """The error that ended it, if any."""
        return self._error

    @property
    def is_done(self) -> bool:
        """Whether it takes no further steps."""
        return self.status.is_end

    @property
    def is_full(self) -> bool:
        """Whether its reader is so far behind that it must pause."""
        return len(self._unread) >= MAX_UNREAD

    @property
    def answer(self) -> list[int]:
        """Tokens generated so far."""
        return self._answer

    def begin(self, session: ChainSession, *, rewind_limit: int, most_positions: int | None = None) -> None:
        """Begin to run on a session.

        Args:
            most_positions: Positions the stream may grow to, if the session was opened for fewer.
            rewind_limit: Largest position from which the session can be rewound; beyond it there are no drafts, as
                wrong ones could not be discarded.
        """
        self._session = session
        self._rewind_limit = rewind_limit
        self._most_positions = max(session.context, most_positions or 0)
        self._become(Status.RUNNING)

    def _become(self, status: Status) -> None:
        """Change to another status; a stream that has ended keeps its own.

        Raises:
            ValueError: The life cycle has no such transition.
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
        """Whether its session is full and the stream may go on in a larger one."""
        return self.kept_ids() >= self.session.context < self._most_positions

    @property
    def next_context(self) -> int:
        """Positions of the next larger session, with twice as many for the answer."""
        num_prompt = len(self.request.prompt)
        return min(self._most_positions, num_prompt + 2 * max(1, self.session.context - num_prompt))

    def move_to(self, session: ChainSession | None) -> None:
        """Go on in another session that holds what this one held; None while there is no room."""
        self._session = session
        self._discard = 0
        self._become(Status.RUNNING if session is not None else Status.WAITING)

    def next_row(self) -> RowToSend:
        """The row of its next step: the last token, or the prompt's last id, followed by drafts."""
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
        """Process the result of a step.

        Args:
            row: The stream's row of the result.
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
        """Positions of the session that hold valid ids; those of wrong drafts come after them."""
        return self.session.position - self._discard

    def end_full(self) -> None:
        """End the answer here, as there is no room for more."""
        self._end("length")
        self._news.set()

    def _end(self, finish: Finish) -> None:
        if not self.is_done:
            self.finish = finish
            self._become(Status.FINISHED)
            self._finished(self)

    def fail(self, error: BaseException) -> None:
        """End it with an error, once the tokens drawn before have been read."""
        if not self.is_done:
            self._error = error
            self._become(Status.FAILED)
        self._news.set()

    def stop(self) -> None:
        """Finish it early at its reader's request: it takes no further steps, and its KV may be kept."""
        self._end("stop")
        self.cancel()

    def cancel(self) -> None:
        """Cancel it, as its reader is gone: it takes no further steps."""
        self._become(Status.CANCELLED)
        self._news.set()
        self._drained()

    def pause(self, resume: Callable[[], None]) -> None:
        """Pause until its reader has caught up or is gone; `resume` is called then."""
        self._become(Status.PAUSED)
        self._resume = resume

    def _drained(self) -> None:
        """Resume, as its reader has caught up."""
        resume, self._resume = self._resume, None
        if resume is not None:
            self._become(Status.RUNNING)
            resume()

    async def while_wanted(self, work: Awaitable[T]) -> T:
        """Await some work for the stream's reader; it is cancelled if the stream ends first.

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
        """Interrupt it after a failed step: leave the microbatch to recover if possible, or end with the error."""
        if isinstance(error, ShardhubError) and is_recoverable(error) and not self.is_done:
            self.interruption = error
            self._become(Status.INTERRUPTED)
        else:
            self.fail(error)

    def since_lost(self) -> float:
        """Record a node's failure and return the seconds since the first failure after the stream's last progress."""
        now = self._clock.now()
        if self.lost_at is None:
            self.lost_at = now
        return now - self.lost_at

    def made_progress(self) -> None:
        """Record progress in its prompt or answer, so that the next failure gets the full waiting time."""
        self.lost_at = None

    @property
    def num_held(self) -> int:
        """Positions the session must hold before the next step: the prompt, and the answer without its last token."""
        return len(self.request.prompt) + self.num_generated - 1

    def go_on(self) -> None:
        """Go on running, as its session is restored."""
        self._discard = 0
        self.interruption = None
        self.num_recoveries += 1
        self._become(Status.OUTGROWN if self._is_outgrown else Status.RUNNING)

    def enter(self) -> asyncio.Future[None]:
        """Enter a microbatch; the future is done once the stream has left it."""
        self._left = asyncio.get_running_loop().create_future()
        return self._left

    def leave(self) -> None:
        """Leave its microbatch, as it has no step in flight."""
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
