"""The compute thread: MLX objects belong to the thread that made them, so one thread makes and runs all of them."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shardhub.errors import Overloaded, ShardhubError

T = TypeVar("T")

# Seconds the interpreter lets the compute thread build graphs before it switches to another. Measured beside such a
# thread: p99 of a round trip 2.1 ms with the default of 5 ms, 1.4 ms with this value.
SWITCH_INTERVAL_S = 0.0005
# Seconds to wait for the system to end a thread that Python has ended.
_END_S = 5.0


@dataclass(slots=True)
class _Job:
    run: Callable[[], Any]
    future: Future[Any]
    cost: float
    is_control: bool = False


class _Owner:
    """The jobs of one owner, in queues that take turns."""

    def __init__(self) -> None:
        self.queues: dict[Hashable, deque[_Job]] = {}
        self._turn: Hashable = None

    def __len__(self) -> int:
        return sum(len(queue) for queue in self.queues.values())

    def pop(self) -> _Job:
        waiting = [key for key, queue in self.queues.items() if queue]
        self._turn = next((key for key in waiting if key != self._turn), waiting[0])
        return self.queues[self._turn].popleft()


class ComputeThread:
    """Runs jobs one at a time: control jobs first, then the owners' queues in round robin by cost.

    An owner's queues, such as those for prompts and for decode steps, take turns, so that a long prompt delays a decode
    step by one chunk at most, and decode steps never starve a prompt.

    Args:
        idle: Called in the thread about every `idle_s` seconds between jobs if no control job waits: a renewal that
            came during a long step must be processed before leases are checked.
        after: Called in the thread after each job that leaves the queues empty.
    """

    def __init__(
        self,
        *,
        idle: Callable[[], None] = lambda: None,
        idle_s: float = 1.0,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._idle = idle
        self._after = after
        self._idle_s = idle_s
        self._wake = threading.Condition()
        self._control: deque[_Job] = deque()
        self._queues: dict[Hashable, _Owner] = {}
        self._spent: dict[Hashable, float] = {}
        self._closed = False
        self._busy_since: float | None = None
        self._num_done = 0
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._thread = threading.Thread(target=self._run, name="shardhub-compute", daemon=True)
        self._thread.start()

    @property
    def num_done(self) -> int:
        """Number of jobs ended so far, which rises as long as the thread makes progress."""
        return self._num_done

    @property
    def num_queued(self) -> int:
        """Number of waiting jobs."""
        with self._wake:
            return sum(len(own) for own in self._queues.values())

    @property
    def busy_s(self) -> float:
        """Seconds the current job has run; 0 between jobs."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def control(self, run: Callable[[], T]) -> Future[T]:
        """Run a control job before everything that is queued."""
        return self._submit(self._control, _Job(run, Future(), 0.0, is_control=True))

    def submit(
        self, owner: Hashable, run: Callable[[], T], *, cost: float, limit: int, queue: Hashable = None
    ) -> Future[T]:
        """Queue a job of `owner`.

        Args:
            cost: Its weight in the round robin, in seconds.
            limit: Most queued jobs of the owner.
            queue: Which of the owner's queues; jobs keep their order within a queue.

        Raises:
            Overloaded: The owner's queue is full, as it exceeded its credit.
        """
        with self._wake:
            own = self._queues.setdefault(owner, _Owner())
            if len(own) >= limit:
                raise Overloaded(f"{len(own)} steps are queued for this head.", why=f"Its credit is {limit}.")
            # An owner that was idle starts level with the others: idle time earns no priority.
            floor = min((self._spent[o] for o, q in self._queues.items() if len(q) and o in self._spent), default=0.0)
            self._spent[owner] = max(self._spent.get(owner, 0.0), floor)
            jobs = own.queues.setdefault(queue, deque())
        return self._submit(jobs, _Job(run, Future(), cost))

    def close(self) -> None:
        """End the thread after the current job; queued jobs are cancelled."""
        with self._wake:
            self._closed = True
            queues = [queue for owner in self._queues.values() for queue in owner.queues.values()]
            pending = [*self._control, *(job for queue in queues for job in queue)]
            self._control.clear()
            self._queues.clear()
            self._wake.notify()
        for job in pending:
            job.future.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join()
            _until_gone(self._thread)

    def _submit(self, queue: deque[_Job], job: _Job) -> Future[Any]:
        with self._wake:
            if self._closed:
                raise Overloaded("The node is going away.", hint="Try another node.")
            queue.append(job)
            self._wake.notify()
        return job.future

    def _next(self) -> _Job | None:
        if self._control:
            return self._control.popleft()
        waiting = [owner for owner, own in self._queues.items() if len(own)]
        if not waiting:
            return None
        owner = min(waiting, key=lambda o: self._spent.get(o, 0.0))
        job = self._queues[owner].pop()
        self._spent[owner] = self._spent.get(owner, 0.0) + job.cost
        if not len(self._queues[owner]) and len(self._queues) > 64:
            del self._queues[owner]
            self._spent.pop(owner, None)
        return job

    def _run(self) -> None:
        idle_at = time.monotonic() + self._idle_s
        while True:
            with self._wake:
                job = self._next()
                while job is None and not self._closed and time.monotonic() < idle_at:
                    self._wake.wait(max(0.0, idle_at - time.monotonic()))
                    job = self._next()
                if self._closed:
                    if job is not None:
                        job.future.cancel()
                    return
                may_idle = not self._control and not (job is not None and job.is_control)
            if may_idle and time.monotonic() >= idle_at:
                self._idle()
                idle_at = time.monotonic() + self._idle_s
            if job is not None and job.future.set_running_or_notify_cancel():
                self._do(job)
                if not self._control and not self.num_queued:
                    self._after()

    def _do(self, job: _Job) -> None:
        self._busy_since = time.monotonic()
        try:
            result = job.run()
        except (ShardhubError, Exception) as error:  # noqa: BLE001 - any error goes to whoever awaits the job
            job.future.set_exception(error)
        else:
            job.future.set_result(result)
        finally:
            self._busy_since = None
            self._num_done += 1


def _until_gone(thread: threading.Thread) -> None:
    """Wait until the system has ended a joined thread, on systems that report it.

    Before Python 3.13 `join` returns earlier, and MLX's thread-local state is freed after that, under the interpreter's
    lock. If the interpreter was ending by then, the process aborted: one of 200 short commands on two busy cores.
    """
    task, deadline = Path(f"/proc/self/task/{thread.native_id}"), time.monotonic() + _END_S
    while task.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
