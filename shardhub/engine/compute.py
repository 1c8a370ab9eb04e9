"""The compute thread: MLX objects belong to the thread that made them, so one thread makes and runs all of them."""

from __future__ import annotations

import atexit
import sys
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

from shardhub.engine.jobs import Job, JobQueues
from shardhub.errors import Overloaded
from shardhub.threads import join

T = TypeVar("T")

# Seconds the interpreter lets the compute thread build graphs before it switches to another. Measured beside such a
# thread: p99 of a round trip 2.1 ms with the default of 5 ms, 1.4 ms with this value.
SWITCH_INTERVAL_S = 0.0005
# An allocation above the sizes that glibc serves from its small bins.
_NOT_SMALL_BYTES = 8192


class ComputeThread:
    """Runs jobs one at a time, in the order of `JobQueues`.

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
        self._jobs = JobQueues()
        self._closed = False
        self._busy_since: float | None = None
        self._num_done = 0
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._thread = threading.Thread(target=self._run, name="shardhub-compute", daemon=True)
        self._thread.start()
        # If nobody closes it: a thread that holds MLX's state aborts an interpreter that ends (SIGABRT).
        atexit.register(self.close)

    @property
    def num_done(self) -> int:
        """Number of jobs ended so far, which rises as long as the thread makes progress."""
        return self._num_done

    @property
    def num_queued(self) -> int:
        """Number of waiting jobs, control jobs aside."""
        with self._wake:
            return len(self._jobs)

    @property
    def busy_s(self) -> float:
        """Seconds the current job has run; 0 between jobs."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def control(self, run: Callable[[], T]) -> Future[T]:
        """Run a control job before everything that is queued."""
        job = Job(run, is_control=True)
        return self._submit(job, lambda: self._jobs.put_control(job))

    def submit(
        self, owner: Hashable, run: Callable[[], T], *, cost: float, limit: int, queue: Hashable = None
    ) -> Future[T]:
        """Queue a job of `owner`; see `JobQueues.put`.

        Args:
            cost: Its weight in the round robin, in seconds.
            limit: Most queued jobs of the owner.
            queue: Which of the owner's queues; jobs keep their order within a queue.

        Raises:
            Overloaded: The owner's queue is full, as it exceeded its credit; or the thread has ended.
        """
        job = Job(run, cost)
        return self._submit(job, lambda: self._jobs.put(owner, job, limit=limit, queue=queue))

    def close(self) -> None:
        """End the thread after the current job; queued jobs are cancelled."""
        with self._wake:
            self._closed = True
            pending = self._jobs.clear()
            self._wake.notify()
        for job in pending:
            job.future.cancel()
        if threading.current_thread() is not self._thread:
            join(self._thread)
        atexit.unregister(self.close)

    def _submit(self, job: Job, put: Callable[[], None]) -> Future[Any]:
        with self._wake:
            if self._closed:
                raise Overloaded("The node is shutting down.", hint="Try another node.")
            put()
            self._wake.notify()
        return job.future

    def _run(self) -> None:
        idle_at = time.monotonic() + self._idle_s
        while True:
            with self._wake:
                job = self._jobs.pop()
                while job is None and not self._closed and time.monotonic() < idle_at:
                    self._wake.wait(max(0.0, idle_at - time.monotonic()))
                    job = self._jobs.pop()
                if self._closed:
                    if job is not None:
                        job.future.cancel()
                    return
                may_idle = not self._jobs.has_control and not (job is not None and job.is_control)
            if may_idle and time.monotonic() >= idle_at:
                self._idle()
                idle_at = time.monotonic() + self._idle_s
            if job is not None and job.future.set_running_or_notify_cancel():
                self._do(job)
                if not self._jobs.has_control and not self.num_queued:
                    self._after()

    def _do(self, job: Job) -> None:
        self._busy_since = time.monotonic()
        try:
            job.do()
        finally:
            self._busy_since = None
            self._num_done += 1


def settle() -> None:
    """Have the allocator sort what a step freed, while no caller waits for this thread.

    glibc does so at the next allocation that is not small. For the thousands of pieces that a step's graph leaves, this
    took 1.5 ms of the next step.
    """
    bytearray(_NOT_SMALL_BYTES)
