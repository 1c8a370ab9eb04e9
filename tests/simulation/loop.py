"""An event loop with virtual time, whose hosts can be frozen, put to sleep and killed.

Each callback belongs to the host in whose context it was scheduled, as tasks and timers inherit their context. A host
that is frozen runs none of its callbacks until it thaws; a killed one never runs them again, as after SIGKILL: no
`finally` and no handler is reached. Nothing waits in real time: when no callback is ready, the time of the next timer
is now.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import socket
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")

# Callbacks that run at one instant before the simulation is taken to be in an endless circle.
_MOST_AT_ONCE = 200_000
# Tasks that are kept, ended ones among them, before the ended ones are dropped.
_FEW_TASKS = 4096


class HostState(Enum):
    """The state of a host.

    FROZEN: its process is stopped; its clocks go on.
    ASLEEP: its machine sleeps; its monotonic clock stands still.
    DEAD: its process has ended for good.
    """

    RUNNING = "running"
    FROZEN = "frozen"
    ASLEEP = "asleep"
    DEAD = "dead"


@dataclass(slots=True, eq=False)
class Host:
    """A process on a machine of its own.

    Attributes:
        name: For traces.
        state: Whether its callbacks run.
        slept_s: Seconds for which its machine has slept, which its monotonic clock does not count.
        date_offset_s: How far its wall clock is ahead.
    """

    name: str
    state: HostState = HostState.RUNNING
    slept_s: float = 0.0
    date_offset_s: float = 0.0
    asleep_since: float | None = None
    woken_at: float = 0.0
    held: list[Handle] = field(default_factory=list, repr=False)

    def awake_for_s(self, loop: VirtualLoop) -> float:
        """Seconds since it last woke up."""
        return loop.now - self.woken_at


# The host of the code that runs; None for the simulator itself.
current_host: contextvars.ContextVar[Host | None] = contextvars.ContextVar("current_host", default=None)


class Handle:
    """A scheduled callback; see `asyncio.TimerHandle`."""

    __slots__ = ("_args", "_call", "_context", "_is_cancelled", "_when", "host")

    def __init__(
        self,
        call: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
        host: Host | None,
        when: float,
    ) -> None:
        self._call: Callable[..., object] | None = call
        self._args = args
        self._context = context
        self._when = when
        self._is_cancelled = False
        self.host = host

    def cancel(self) -> None:
        self._is_cancelled = True
        self._call = None
        self._args = ()

    def cancelled(self) -> bool:
        return self._is_cancelled

    def when(self) -> float:
        return self._when

    def run(self) -> None:
        if self._call is None:
            return
        if self._context is None:
            self._call(*self._args)
        else:
            self._context.run(self._call, *self._args)


class Stuck(RuntimeError):
    """The loop has no event left, or never leaves one instant."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """An event loop whose time is virtual.

    Args:
        start: Its time at the beginning, in seconds.

    Attributes:
        errors: Exceptions that nobody handled, in order, each with its host's name.
        num_run: Callbacks run so far.
        around: Runs every callback in place of the loop, to measure it; None runs them plainly.
    """

    def __init__(self, start: float = 1000.0) -> None:
        self.now = start
        self.errors: list[tuple[str, str, BaseException | None]] = []
        self.num_run = 0
        self.around: Callable[[Handle], None] | None = None
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._numbers = itertools.count()
        self._is_running = False
        self._is_closed = False
        self._tasks: list[tuple[asyncio.Task[Any], Host | None]] = []
        self._prune_at = _FEW_TASKS

    # Hosts.

    def freeze(self, host: Host) -> None:
        """Stop a host's process."""
        if host.state is HostState.RUNNING:
            host.state = HostState.FROZEN

    def sleep_host(self, host: Host) -> None:
        """Put a host's machine to sleep."""
        if host.state is HostState.RUNNING:
            host.state, host.asleep_since = HostState.ASLEEP, self.now

    def wake(self, host: Host) -> None:
        """Let a frozen or sleeping host go on with what it held."""
        if host.state not in (HostState.FROZEN, HostState.ASLEEP):
            return
        if host.asleep_since is not None:
            host.slept_s += self.now - host.asleep_since
            host.asleep_since = None
        host.state, host.woken_at = HostState.RUNNING, self.now
        held, host.held = host.held, []
        for handle in held:
            if handle._when and self._late(handle) > self.now:
                self._push(handle)
            else:
                self._ready.append(handle)

    def kill(self, host: Host) -> None:
        """End a host's process: nothing of it runs any more."""
        host.state = HostState.DEAD
        host.held.clear()

    def spawn(self, host: Host | None, work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Start a task on a host."""
        context = contextvars.copy_context()
        context.run(current_host.set, host)
        return self.create_task(work, name=name, context=context)

    # Time.

    def time(self) -> float:
        """Monotonic seconds on the clock of the host whose code runs."""
        host = current_host.get()
        if host is None:
            return self.now
        if host.asleep_since is not None:
            return host.asleep_since - host.slept_s
        return self.now - host.slept_s

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        if context is None:
            context, host = contextvars.copy_context(), current_host.get()
        else:
            host = context.get(current_host)
        handle = Handle(callback, args, context, host, 0.0)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        if context is None:
            context, host = contextvars.copy_context(), current_host.get()
        else:
            host = context.get(current_host)
        when = self.time() + delay
        handle = Handle(callback, args, context, host, when)
        due = when if host is None else when + host.slept_s
        heapq.heappush(self._timers, (due, next(self._numbers), handle))
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        if context is None:
            context, host = contextvars.copy_context(), current_host.get()
        else:
            host = context.get(current_host)
        handle = Handle(callback, args, context, host, when)
        self._push(handle)
        return handle

    def later(self, seconds: float, call: Callable[..., object], *args: Any) -> None:
        """Schedule a function of the simulator itself, which runs in the context of whoever runs the loop."""
        when = self.now + seconds
        heapq.heappush(self._timers, (when, next(self._numbers), Handle(call, args, None, None, when)))

    def _push(self, handle: Handle) -> None:
        heapq.heappush(self._timers, (self._late(handle), next(self._numbers), handle))

    def _late(self, handle: Handle) -> float:
        """When a timer is due in the simulation: its own time is that of its host."""
        return handle._when + (handle.host.slept_s if handle.host is not None else 0.0)

    # Running.

    def run_until(self, is_over: Callable[[], bool], *, most_s: float) -> None:
        """Run until a condition holds, which is checked between instants.

        Raises:
            Stuck: It does not hold within `most_s` virtual seconds, or nothing is left that could happen.
        """
        end = self.now + most_s
        self._is_running = True
        asyncio._set_running_loop(self)
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=None, finalizer=self._end_generator)
        num_at_once = 0
        ready, timers, take = self._ready, self._timers, heapq.heappop
        running = HostState.RUNNING
        try:
            while ready or not is_over():
                if ready:
                    handle = ready.popleft()
                    host = handle.host
                    num_at_once += 1
                    if num_at_once > _MOST_AT_ONCE:
                        raise Stuck(f"At {self.now:.3f} s callbacks follow each other without end.")
                elif timers:
                    due, _, handle = take(timers)
                    if handle._call is None:
                        continue
                    if due > end:
                        raise Stuck(f"Not over within {most_s:.0f} virtual seconds.")
                    if due > self.now:
                        self.now, num_at_once = due, 0
                    host = handle.host
                    # Its host has slept since it was set.
                    if host is not None and handle._when + host.slept_s > self.now:
                        self._push(handle)
                        continue
                else:
                    raise Stuck("Nothing is left that could happen.")
                if host is not None and host.state is not running:
                    if host.state is not HostState.DEAD:
                        host.held.append(handle)
                    continue
                self.num_run += 1
                if self.around is not None:
                    self.around(handle)
                elif (call := handle._call) is not None:
                    if (context := handle._context) is not None:
                        context.run(call, *handle._args)
                    else:
                        call(*handle._args)
        finally:
            sys.set_asyncgen_hooks(*hooks)
            asyncio._set_running_loop(None)
            self._is_running = False

    def _end_generator(self, generator: Any) -> None:
        if not self._is_closed:
            self.call_soon(lambda: asyncio.Task(generator.aclose(), loop=self))

    def run_until_complete(self, future: Any) -> Any:
        task = asyncio.ensure_future(future, loop=self)
        self.run_until(task.done, most_s=1e9)
        return task.result()

    def is_running(self) -> bool:
        return self._is_running

    def is_closed(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        """Close the loop and the remaining tasks; code of dead hosts does not run."""
        asyncio._set_running_loop(self)  # what is closed may still begin tasks, which are closed too
        for task, _ in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(BaseException):
                    task.get_coro().close()  # type: ignore[union-attr]
        asyncio._set_running_loop(None)
        self._is_closed = True
        self._tasks.clear()
        self._ready.clear()
        self._timers.clear()

    def get_debug(self) -> bool:
        return False

    # What code on the loop makes.

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        if len(self._tasks) >= self._prune_at:
            self.drop_ended_tasks()
        host = current_host.get() if context is None else context.get(current_host)
        self._tasks.append((task, host))
        return task

    def drop_ended_tasks(self) -> None:
        """Free ended tasks, except those whose error has not been read yet."""
        self._tasks = [(task, host) for task, host in self._tasks if not task.done() or _is_unasked(task)]
        self._prune_at = max(_FEW_TASKS, 2 * len(self._tasks))

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Schedule a function on the loop: there are no threads here."""
        future: asyncio.Future[T] = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:  # noqa: BLE001 - as an executor does
                future.set_exception(error)

        self.call_soon(run)
        return future

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        """Return an address as it is: all are numbers here."""
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port or 0))]

    def unhandled(self) -> list[tuple[str, str, BaseException | None]]:
        """Errors that were not handled so far, including those of ended tasks that nothing has awaited."""
        ended = []
        for task, host in self._tasks:
            if task.done() and _is_unasked(task):
                error = task.exception()
                # A dead host's tasks have nobody left who could ask.
                if host is None or host.state is not HostState.DEAD:
                    ended.append((host.name if host else "", "a task ended", error))
        return [*self.errors, *ended]

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        host = current_host.get()
        self.errors.append((host.name if host else "", context.get("message", ""), context.get("exception")))

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)


def _is_unasked(task: asyncio.Task[Any]) -> bool:
    return not task.cancelled() and task._log_traceback  # type: ignore[attr-defined]
