"""The compute thread: order, fairness, credit and shutdown."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref

import psutil
import pytest

from shardhub.engine.compute import ComputeThread
from shardhub.errors import Overloaded

WAIT_S = 10


@pytest.fixture
def compute():
    thread = ComputeThread()
    yield thread
    thread.close()


class Gate:
    """A job that blocks the thread until it is released."""

    def __init__(self, compute: ComputeThread) -> None:
        self.running, self.go = threading.Event(), threading.Event()
        self.future = compute.submit("gate", self._run, cost=0, limit=10)
        assert self.running.wait(WAIT_S)

    def _run(self) -> None:
        self.running.set()
        assert self.go.wait(WAIT_S)


def test_jobs_of_one_owner_keep_their_order(compute) -> None:
    """Jobs of one owner run first in, first out."""
    done: list[int] = []
    futures = [compute.submit("a", lambda i=i: done.append(i), cost=1, limit=100) for i in range(50)]
    for future in futures:
        future.result(WAIT_S)
    assert done == list(range(50))


def test_control_goes_before_what_is_queued(compute) -> None:
    """Opening or closing a session does not wait for queued steps."""
    gate, done = Gate(compute), []
    step = compute.submit("a", lambda: done.append("step"), cost=1, limit=10)
    control = compute.control(lambda: done.append("control"))
    gate.go.set()
    step.result(WAIT_S), control.result(WAIT_S)
    assert done == ["control", "step"]


def test_owners_share_by_cost(compute) -> None:
    """Owners share the thread by cost, so that large chunks do not delay another owner's single steps."""
    gate, done = Gate(compute), []
    futures = [compute.submit("large", lambda: done.append("large"), cost=100, limit=100) for _ in range(10)]
    futures += [compute.submit("small", lambda: done.append("small"), cost=1, limit=100) for _ in range(10)]
    gate.go.set()
    for future in futures:
        future.result(WAIT_S)
    assert done.index("small") <= 1
    assert done[:12].count("small") == 10


def test_an_owner_beyond_its_credit_is_refused(compute) -> None:
    """The queue is bounded, and a refusal does not affect other owners."""
    gate = Gate(compute)
    for _ in range(3):
        compute.submit("a", lambda: None, cost=1, limit=3)
    with pytest.raises(Overloaded, match="3 steps"):
        compute.submit("a", lambda: None, cost=1, limit=3)
    other = compute.submit("b", lambda: "ran", cost=1, limit=3)
    gate.go.set()
    assert other.result(WAIT_S) == "ran"


def test_a_job_that_was_cancelled_takes_no_room(compute) -> None:
    """A cancelled job is not run and frees its place in the queue."""
    gate, done = Gate(compute), []
    jobs = [compute.submit("a", lambda i=i: done.append(i), cost=1, limit=3) for i in range(3)]
    assert jobs[1].cancel()
    last = compute.submit("a", lambda: done.append(3), cost=1, limit=3)
    gate.go.set()
    last.result(WAIT_S)
    assert done == [0, 2, 3]


def test_an_error_belongs_to_its_job(compute) -> None:
    """The thread goes on after a job that raised an exception."""
    with pytest.raises(ZeroDivisionError):
        compute.control(lambda: 1 // 0).result(WAIT_S)
    assert compute.control(lambda: 7).result(WAIT_S) == 7


def test_close_cancels_what_waits_and_refuses_what_comes() -> None:
    """Closing the thread cancels queued jobs and refuses new ones, so that no caller waits for ever."""
    compute = ComputeThread()
    gate = Gate(compute)
    waiting = compute.submit("a", lambda: None, cost=1, limit=3)
    closing = threading.Thread(target=compute.close)
    closing.start()
    deadline = time.monotonic() + WAIT_S
    while not waiting.cancelled() and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert waiting.cancelled()
    gate.go.set()
    closing.join(WAIT_S)
    with pytest.raises(Overloaded, match="shutting down"):
        compute.control(lambda: None)


def test_close_waits_until_the_system_has_ended_the_thread() -> None:
    """Closing returns once the system has ended the thread, as what MLX frees then could abort an ending process."""
    for _ in range(50):
        compute = ComputeThread()
        ended = compute.control(threading.get_native_id).result(WAIT_S)
        compute.close()
        assert ended not in {thread.id for thread in psutil.Process().threads()}


def test_process_waits_for_a_job_of_a_thread_that_nobody_closed() -> None:
    """A process waits for a running job at its end: ending within MLX's code would abort it."""
    code = """
import threading
from shardhub.engine.compute import ComputeThread

def run():
    began.set()
    threading.main_thread().join()
    for _ in range(10**6):
        pass
    print("done")

began = threading.Event()
ComputeThread().control(run)
began.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_closed_thread_is_not_kept_for_the_end_of_the_process() -> None:
    """A closed thread is released at once, so that a program may open and close many."""
    compute = ComputeThread()
    compute.close()
    kept = weakref.ref(compute)
    del compute
    gc.collect()
    assert kept() is None


def test_idle_work_is_done_between_jobs() -> None:
    """Leases are checked even while jobs arrive without a pause."""
    seen = threading.Event()
    compute = ComputeThread(idle=seen.set, idle_s=0.05)
    deadline = time.monotonic() + WAIT_S
    while not seen.is_set() and time.monotonic() < deadline:
        compute.control(lambda: None).result(WAIT_S)
    compute.close()
    assert seen.is_set()


def test_busy_time_is_that_of_the_present_job(compute) -> None:
    """A watchdog can see how long the present job has run."""
    gate = Gate(compute)
    before = compute.busy_s
    assert threading.Event().wait(0.05) is False
    assert compute.busy_s > before
    gate.go.set()
    gate.future.result(WAIT_S)
    compute.control(lambda: None).result(WAIT_S)
    assert compute.num_done >= 1


def test_control_is_heard_before_idle_work() -> None:
    """A renewal that waited behind a long step is applied before leases are checked."""
    order: list[str] = []
    compute = ComputeThread(idle=lambda: order.append("idle"), idle_s=0.05)
    gate = Gate(compute)
    controls = [compute.control(lambda: order.append("control")) for _ in range(3)]
    order.clear()
    threading.Event().wait(0.2)  # longer than the idle interval, all of it in one job
    gate.go.set()
    for control in controls:
        control.result(WAIT_S)
    deadline = time.monotonic() + WAIT_S
    while "idle" not in order and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    compute.close()
    assert order[:4] == ["control", "control", "control", "idle"]


def test_work_after_a_job_waits_until_nobody_does() -> None:
    """Deferred work runs once the result is out and no job is queued."""
    done: list[str] = []
    tidied = threading.Event()

    def after() -> None:
        done.append("after")
        tidied.set()

    compute = ComputeThread(after=after)
    try:
        gate = Gate(compute)
        jobs = [compute.submit("a", lambda i=i: done.append(f"job {i}"), cost=0, limit=10) for i in range(3)]
        gate.go.set()
        for job in jobs:
            job.result(WAIT_S)
        assert tidied.wait(WAIT_S)
        assert done[:4] == ["job 0", "job 1", "job 2", "after"]
    finally:
        compute.close()
