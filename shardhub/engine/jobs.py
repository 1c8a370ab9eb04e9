"""An engine's jobs, and the order in which they run, the same in a thread and in a simulation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from shardhub.errors import Overloaded, ShardhubError

T = TypeVar("T")

# Owners beyond which those without jobs are forgotten: a caller can invent any number.
_MAX_IDLE_OWNERS = 64


class Compute(Protocol):
    """Runs an engine's jobs one at a time, in the order of `JobQueues`."""

    @property
    def num_done(self) -> int:
        """Number of jobs ended so far."""

    @property
    def num_queued(self) -> int:
        """Number of waiting jobs, control jobs aside."""

    @property
    def busy_s(self) -> float:
        """Seconds the current job has run; 0 between jobs."""

    def control(self, run: Callable[[], T]) -> Future[T]:
        """Run a control job before everything that is queued."""

    def submit(
        self, owner: Hashable, run: Callable[[], T], *, cost: float, limit: int, queue: Hashable = None
    ) -> Future[T]:
        """Queue a job; see `JobQueues.put`."""

    def close(self) -> None:
        """End after the current job; queued jobs are cancelled."""


@dataclass(slots=True)
class Job:
    """Something to run.

    Attributes:
        cost: Its weight in the round robin, in seconds.
        is_control: Whether it goes before everything that is queued.
    """

    run: Callable[[], Any]
    cost: float = 0.0
    is_control: bool = False
    future: Future[Any] = field(default_factory=Future)

    def do(self) -> None:
        """Run it; its future gets the result, or the error."""
        try:
            result = self.run()
        except (ShardhubError, Exception) as error:  # noqa: BLE001 - any error goes to whoever awaits the job
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class _Owner:
    """The jobs of one owner, in queues that take turns."""

    def __init__(self) -> None:
        self.queues: dict[Hashable, deque[Job]] = {}
        self._turn: Hashable = None
        self._num = 0

    def __len__(self) -> int:
        return self._num

    def forget_ended(self) -> int:
        """Drop jobs whose future is done, and return their number."""
        before = self._num
        for key, queue in self.queues.items():
            self.queues[key] = deque(job for job in queue if not job.future.done())
        self._num = sum(len(queue) for queue in self.queues.values())
        return before - self._num

    def put(self, key: Hashable, job: Job) -> None:
        self.queues.setdefault(key, deque()).append(job)
        self._num += 1

    def pop(self) -> Job:
        waiting = [key for key, queue in self.queues.items() if queue]
        self._turn = next((key for key in waiting if key != self._turn), waiting[0])
        self._num -= 1
        return self.queues[self._turn].popleft()


class JobQueues:
    """Waiting jobs: control jobs first, then the owners' queues in round robin by cost.

    An owner's queues, such as those for prompts and for decode steps, take turns, so that a long prompt delays a decode
    step by one chunk at most, and decode steps never starve a prompt.
    """

    def __init__(self) -> None:
        self._control: deque[Job] = deque()
        self._owners: dict[Hashable, _Owner] = {}
        self._spent: dict[Hashable, float] = {}
        self._num = 0

    def __len__(self) -> int:
        """Number of waiting jobs, control jobs aside."""
        return self._num

    @property
    def has_control(self) -> bool:
        """Whether a control job waits."""
        return bool(self._control)

    def put_control(self, job: Job) -> None:
        """Queue a job before everything else."""
        self._control.append(job)

    def put(self, owner: Hashable, job: Job, *, limit: int, queue: Hashable = None) -> None:
        """Queue a job of `owner`.

        Args:
            limit: Most queued jobs of the owner; those whose future is done do not count.
            queue: Which of the owner's queues; jobs keep their order within a queue.

        Raises:
            Overloaded: The owner's queue is full, as it exceeded its credit.
        """
        own = self._owners.setdefault(owner, _Owner())
        if len(own) >= limit:
            self._num -= own.forget_ended()
        if len(own) >= limit:
            raise Overloaded(
                f"{len(own)} steps are queued for this head.", why=f"The node queues at most {limit} for a head."
            )
        # An owner that was idle starts level with the others: idle time earns no priority.
        floor = min((self._spent[o] for o, q in self._owners.items() if len(q) and o in self._spent), default=0.0)
        self._spent[owner] = max(self._spent.get(owner, 0.0), floor)
        own.put(queue, job)
        self._num += 1

    def pop(self) -> Job | None:
        """Take the job that runs next; None if none waits. Those whose future is done by now are dropped."""
        job = self._next()
        while job is not None and job.future.done():
            job = self._next()
        return job

    def clear(self) -> list[Job]:
        """Take all waiting jobs out."""
        queues = [queue for owner in self._owners.values() for queue in owner.queues.values()]
        jobs = [*self._control, *(job for queue in queues for job in queue)]
        self._control.clear()
        self._owners.clear()
        self._num = 0
        return jobs

    def _next(self) -> Job | None:
        if self._control:
            return self._control.popleft()
        if not self._num:
            return None
        waiting = [owner for owner, own in self._owners.items() if len(own)]
        owner = min(waiting, key=lambda o: self._spent.get(o, 0.0))
        job = self._owners[owner].pop()
        self._num -= 1
        self._spent[owner] = self._spent.get(owner, 0.0) + job.cost
        if not len(self._owners[owner]) and len(self._owners) > _MAX_IDLE_OWNERS:
            del self._owners[owner]
            self._spent.pop(owner, None)
        return job
