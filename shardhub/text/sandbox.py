"""Runs untrusted input in child processes, which are started, queried, timed and killed from here."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue

from shardhub.errors import PromptError, ShardhubError

# Python and a library start in about 0.2 s; a loaded machine may need far longer.
START_TIMEOUT_S = 30.0
# The worker's CPU time, because a loaded machine may delay it. Legitimate templates render in milliseconds.
RENDER_TIMEOUT_S = 1.0
# How long to wait, beyond its CPU time, for a worker that the system does not schedule.
_NOT_RUN_S = 30.0
_CHUNK_BYTES = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The program of a worker.

    Attributes:
        module: The module to run with `python -m`; see `shardhub.text.confinement` for its duties.
        packages: Packages that it may import besides the standard library.
        subject: The name of the untrusted input, for messages.
        cpu_s: CPU time for one answer.
        hint: What the user can do if the worker does not start.
    """

    module: str
    packages: tuple[str, ...]
    subject: str
    cpu_s: float
    hint: str


RENDERING = Program(
    module="shardhub.text.template_worker",
    packages=("shardhub", "jinja2", "markupsafe"),
    subject="The chat template",
    cpu_s=RENDER_TIMEOUT_S,
    hint="Check that jinja2 is installed; `raw` sends a prompt without a template.",
)


class Sandbox:
    """One worker process, started on first use or by `start`, and again after it was killed.

    Requests are JSON lines, answered in order. Calls from several threads wait for each other. The process ends with
    `close`, with this object, and with the parent process.

    Args:
        program: The program to run.
        setup: Returns a first line, which the worker reads before it is ready.
    """

    def __init__(self, program: Program = RENDERING, *, setup: Callable[[], bytes] | None = None) -> None:
        self._program = program
        self._setup = setup
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: weakref.finalize | None = None  # type: ignore[type-arg]

    def start(self) -> None:
        """Start the worker and wait until it is ready.

        Raises:
            ShardhubError: The worker does not start.
        """
        with self._lock:
            self._started()

    def ask(self, request: bytes, *, max_answer_bytes: int, more_cpu_s: float = 0.0) -> bytes:
        """Send one line and return the answer line, both without the line break.

        Args:
            max_answer_bytes: Maximum size of the answer.
            more_cpu_s: CPU time allowed in addition to the program's.

        Raises:
            PromptError: No complete answer arrived within the CPU time and `max_answer_bytes`; the worker was killed.
            ShardhubError: The worker does not start.
        """
        with self._lock:
            process = self._started()
            try:
                return _exchange(
                    process,
                    request + b"\n",
                    subject=self._program.subject,
                    timeout_s=self._program.cpu_s + more_cpu_s,
                    wait_s=_NOT_RUN_S + more_cpu_s,
                    max_bytes=max_answer_bytes,
                )
            except BaseException:
                # A late answer would be taken for the next request's, so after any failure the worker is killed.
                self._stop()
                raise

    def close(self) -> None:
        """Kill the worker, even if it is busy. A later call starts another."""
        if (process := self._process) is not None:
            process.kill()  # releases the lock, if a call is waiting for the answer
        with self._lock:
            self._stop()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        try:
            process = subprocess.Popen(
                # -S and -P: import from the folders named here only, not from site's path files or the current folder.
                [sys.executable, "-S", "-P", "-X", "utf8", "-m", self._program.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(self._program.packages),
                bufsize=0,
                start_new_session=True,  # Ctrl-C in a chat ends the answer, not the worker
            )
        except OSError as error:  # too many open files or processes, or no memory for one
            raise self._not_started(f"{error.strerror or error}.") from error
        self._process = process
        self._reaper = weakref.finalize(self, _end, process)
        try:
            start = {"timeout_s": START_TIMEOUT_S, "wait_s": START_TIMEOUT_S}
            first = self._setup() + b"\n" if self._setup is not None else b""
            _exchange(process, first, subject="It", max_bytes=_CHUNK_BYTES, **start)
        except PromptError as error:
            self._stop()
            raise self._not_started(error.why) from error
        except BaseException:
            self._stop()
            raise
        return process

    def _not_started(self, why: str) -> ShardhubError:
        return ShardhubError(
            f"The process `{self._program.module}` could not be started.", why=why, hint=self._program.hint
        )

    def _stop(self) -> None:
        if self._reaper is not None:
            self._reaper()
        self._process = self._reaper = None


class Sandboxes:
    """Several workers of one program. Each is started when the others are busy.

    Args:
        program, setup: See `Sandbox`.
        num: Maximum number of workers.
    """

    def __init__(self, program: Program, num: int, *, setup: Callable[[], bytes] | None = None) -> None:
        self._all = [Sandbox(program, setup=setup) for _ in range(num)]
        # The worker that was used last is used first, because it is already running.
        self._free: LifoQueue[Sandbox] = LifoQueue()
        for sandbox in self._all:
            self._free.put(sandbox)

    def start(self) -> None:
        """Start one worker now.

        Raises:
            ShardhubError: The worker does not start.
        """
        self._all[-1].start()

    def ask(self, request: bytes, *, max_answer_bytes: int, more_cpu_s: float = 0.0) -> bytes:
        """Call `Sandbox.ask` of a free worker; waits for one."""
        sandbox = self._free.get()
        try:
            return sandbox.ask(request, max_answer_bytes=max_answer_bytes, more_cpu_s=more_cpu_s)
        finally:
            self._free.put(sandbox)

    def close(self) -> None:
        """End the workers. A later call starts another."""
        for sandbox in self._all:
            sandbox.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _environment(packages: Sequence[str]) -> dict[str, str]:
    """The worker's environment: of the caller's, only the time zone, because templates may print the date."""
    folders: dict[str, None] = {}
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            folders[str(Path(spec.origin).parent.parent)] = None
    environment = {"PYTHONPATH": os.pathsep.join(folders)}
    if "TZ" in os.environ:
        environment["TZ"] = os.environ["TZ"]
    return environment


def _cpu_s(process: subprocess.Popen[bytes]) -> float:
    """CPU time that a process has used; infinite if it cannot be determined."""
    import psutil

    try:
        times = psutil.Process(process.pid).cpu_times()
    except psutil.Error:
        return float("inf")
    return float(times.user + times.system)


def _exchange(
    process: subprocess.Popen[bytes], request: bytes, *, subject: str, timeout_s: float, wait_s: float, max_bytes: int
) -> bytes:
    """Write a request and read a line, both within the time, because a hanging worker does not read either.

    Args:
        subject: The name of the untrusted input, for messages.
        timeout_s: Limit of the worker's CPU time.
        wait_s: How long to wait for a worker that the system does not schedule.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    source, sink = process.stdout.fileno(), process.stdin.fileno()
    os.set_blocking(sink, False)
    cpu_s, began_at = _cpu_s(process), time.monotonic()
    deadline, latest = began_at + timeout_s, began_at + wait_s
    unsent, received = memoryview(request), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        if unsent:
            selector.register(sink, selectors.EVENT_WRITE)
        while True:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                left_s = cpu_s + timeout_s - _cpu_s(process)
                if left_s > 0 and time.monotonic() < latest:
                    deadline = min(latest, time.monotonic() + left_s)
                    continue
                raise PromptError(f"{subject} is too slow.", why=f"It did not finish within {timeout_s:g} s.")
            for key, _ in ready:
                if key.fd == sink:
                    with contextlib.suppress(BrokenPipeError):  # the read below reports the reason
                        unsent = unsent[os.write(sink, unsent[:_CHUNK_BYTES]) :]
                        if unsent:
                            continue
                    selector.unregister(sink)
                    continue
                chunk = os.read(source, _CHUNK_BYTES)
                received += chunk
                if chunk.endswith(b"\n"):
                    return bytes(received[:-1])
                if not chunk:
                    raise PromptError(
                        f"{subject} made its process end.", why="It used too much memory, time or recursion."
                    )
                if len(received) > max_bytes:
                    raise PromptError(
                        f"{subject} produces too much output.", why=f"It produced more than {max_bytes} bytes."
                    )
