"""`shardhub` processes forked from one that has done the slow imports: they take four seconds of a processor.

A forked process is a child of the test's process like any other, with its own arguments, environment, folder and
streams, and ends as Python ends. Where a fork could differ from a new process, a new one is started: on systems without
subreapers, and with an environment in which packages might be imported otherwise.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import os
import random
import resource
import runpy
import socket
import subprocess
import sys
import termios
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Imported before any fork, with what they import: none reads a variable of ours, starts a thread, or imports MLX, which
# must be loaded by the thread that computes, after the BLAS is chosen.
_PRELOADED = (
    *("transformers.models.auto.tokenization_auto", "transformers", "huggingface_hub.file_download", "jinja2"),
    *("shardhub.cli.app", "shardhub.engine.engine", "shardhub.node.servicer", "shardhub.hub.fetch"),
    *("shardhub.gateway.app", "uvicorn", "prompt_toolkit.shortcuts", "wcwidth"),
)
# Variables that may differ between the server and a fork: only shardhub, pytest and terminals read them.
_OURS = ("SHARDHUB_", "PYTEST_", "TERM", "NO_COLOR")
_SET_CHILD_SUBREAPER = 36
# More files than the server ever has open.
_MOST_FDS = 1024
_COMMAND = (sys.executable, "-m", "shardhub")


def popen(
    arguments: list[str], *, env: dict[str, str] | None = None, num_files: int | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """Start `shardhub` with these arguments; takes what `subprocess.Popen` takes, but for `preexec_fn`.

    With `preexec_fn` Python forks this process, and the fork runs gRPC's handlers, whose poller then ends it now and
    then: Python has closed its descriptor already (grpcio 1.81).

    Args:
        arguments: Of the command.
        env: Its whole environment; this process's without it.
        num_files: The limit on its open files; this process's without it.
        options: More for `Popen`; with `start_new_session` a terminal on standard input controls the session.
    """
    env = dict(os.environ) if env is None else env
    server = _server()
    if server is None or not server.is_like(env):
        has_session = bool(options.get("start_new_session"))
        setting = json.dumps({"has_session": has_session, "num_files": num_files})
        return subprocess.Popen([sys.executable, __file__, setting, *_COMMAND, *arguments], env=env, **options)
    return _Forked([*_COMMAND, *arguments], env=env, num_files=num_files, **options)


def run(arguments: list[str], *, stdin: str, timeout: float, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `shardhub` with these arguments to its end, as `subprocess.run` does with `capture_output`."""
    pipe = subprocess.PIPE
    with popen(arguments, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            out, errors = process.communicate(stdin, timeout=timeout)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.wait(), out, errors)


class _Forked(subprocess.Popen[Any]):
    """A process forked by the server."""

    def __init__(
        self, *args: Any, start_new_session: bool = False, num_files: int | None = None, **options: Any
    ) -> None:
        self._setting = {"has_session": start_new_session, "num_files": num_files}
        super().__init__(*args, **options)

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *rest: Any) -> None:
        close_fds, pass_fds, cwd, env, _, _, shell, *pipes = rest[:13]
        assert close_fds
        assert not any((executable, preexec_fn, pass_fds, shell))
        p2cread, _, _, c2pwrite, _, errwrite = pipes
        server = _server()
        assert server is not None
        streams = [theirs if theirs != -1 else own for own, theirs in enumerate((p2cread, c2pwrite, errwrite))]
        try:
            self.pid = server.fork(
                list(args[len(_COMMAND) :]),
                cwd=os.fspath(cwd or os.getcwd()),
                env=env,
                fds=streams,
                setting=self._setting,
            )
            self._child_created = True
        finally:
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


class _Server:
    """The process that forks, one for each test process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._env = _comparable(dict(os.environ))
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                start_new_session=True,
            )
        atexit.register(self.close)

    def is_like(self, env: dict[str, str]) -> bool:
        """Whether this environment imports packages as the server's does."""
        return _comparable(env) == self._env

    def fork(
        self, arguments: list[str], *, cwd: str, env: dict[str, str], fds: list[int], setting: dict[str, Any]
    ) -> int:
        """Fork a process; returns its id, as a child of this process.

        Args:
            setting: `has_session`, whether it gets a session of its own, controlled by its standard input if that is
                a terminal; `num_files`, its limit on open files.
        """
        request = json.dumps({"arguments": arguments, "cwd": cwd, "env": env, "setting": setting}).encode()
        with self._lock:
            _adopt_orphans(True)
            try:
                socket.send_fds(self._socket, [len(request).to_bytes(4, "big")], fds)
                self._socket.sendall(request)
                return int.from_bytes(_read(self._socket, 4), "big")
            finally:
                _adopt_orphans(False)

    def close(self) -> None:
        """End the server; its forked processes go on."""
        self._socket.close()
        self._process.wait()


_known: dict[int, _Server] = {}


def _server() -> _Server | None:
    """This process's server, started on first use; None where the platform does not allow one."""
    if not sys.platform.startswith("linux"):
        return None
    if os.getpid() not in _known:
        _known[os.getpid()] = _Server()
    return _known[os.getpid()]


def _adopt_orphans(is_adopting: bool) -> None:
    """Make processes whose parent ends children of this one, or of the system's first process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_CHILD_SUBREAPER, ctypes.c_ulong(is_adopting), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _settle(*, has_session: bool, num_files: int | None) -> None:
    """Limit this process's files, and let a terminal on standard input control its session: Ctrl-C there ends it."""
    if num_files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, num_files))
    if has_session and os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _comparable(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(_OURS)}


def _read(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise ConnectionError("the process that is forked has ended")
        data += more
    return data


@dataclass(frozen=True, slots=True)
class _Program:
    """The program that a fork runs."""

    arguments: list[str]
    cwd: str
    env: dict[str, str]
    fds: list[int]
    setting: dict[str, Any]

    def run(self) -> None:
        """Become the program."""
        for own, theirs in enumerate(self.fds):
            os.dup2(theirs, own)
        if self.setting["has_session"]:
            os.setsid()
        os.closerange(len(self.fds), _MOST_FDS)
        _settle(**self.setting)
        os.chdir(self.cwd)
        os.environ.clear()
        os.environ.update(self.env)
        random.seed()
        from tests import known  # imported before the fork, which may be in another folder

        known.prepare(remembers=True)
        sys.argv = ["shardhub", *self.arguments]
        sys.path[0] = self.cwd
        runpy.run_module("shardhub", run_name="__main__", alter_sys=True)


def _serve(connection: socket.socket) -> _Program | None:
    """Fork for each request until the tests end; returns None in the server, and the program in each fork."""
    while True:
        header, fds, _, _ = socket.recv_fds(connection, 4, 3)
        if not header:
            return None
        request = json.loads(_read(connection, int.from_bytes(header, "big")))
        ours, theirs = os.pipe()
        parent = os.fork()
        if parent == 0:
            pid = os.fork()
            if pid == 0:
                return _Program(fds=fds, **request)
            # With the end of its parent the process becomes the tests' child.
            os.write(theirs, pid.to_bytes(4, "big"))
            os._exit(0)
        os.waitpid(parent, 0)
        connection.sendall(os.read(ours, 4))
        for fd in (ours, theirs, *fds):
            os.close(fd)


def main() -> None:
    """Run the server, or a forked program."""
    from tests import known  # noqa: F401 - for the forks

    connection = socket.socket(fileno=int(sys.argv[1]))
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # as shardhub itself does
    for name in _PRELOADED:
        importlib.import_module(name)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401 - transformers imports lazily

    assert "mlx.core" not in sys.modules

    gc.collect()
    gc.freeze()
    program = _serve(connection)
    connection.detach()  # in a fork its number may be another's by now
    if program is not None:
        program.run()


if __name__ == "__main__":
    if sys.argv[1].startswith("{"):
        _settle(**json.loads(sys.argv[1]))
        os.execv(sys.argv[2], sys.argv[2:])
    main()
