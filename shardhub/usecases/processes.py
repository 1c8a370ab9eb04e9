"""Commands of this package in processes of their own: started, waited for, and ended together."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from shardhub.errors import ChainError

# Loading and warming up a stage of a small model takes a second or two; a cold machine compiles kernels first.
_START_TIMEOUT_S = 300
# Only the record of an error, which a command prints as its result too, has this.
_EXIT_CODE = "exit_code"
# Of a log, in an error.
_LOG_CHARACTERS = 2000


def run_command(*words: str, log: Path, failure: str, **settings: object) -> dict[str, Any]:
    """Run a command to its end; returns the JSON that it prints.

    Args:
        words: The command and its arguments.
        log: File for what it logs.
        failure: What an error says has not happened.
        settings: Its settings; True is an option without a value.

    Raises:
        ChainError: The command failed; the end of its log says why.
    """
    with log.open("w") as errors:
        done = subprocess.run(_command(words, settings), stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
    if done.returncode != 0:
        raise ChainError(failure, why=_end_of(log))
    record: dict[str, Any] = json.loads(done.stdout)
    return record


class Processes:
    """Processes that serve while a block runs; each logs into a file.

    Args:
        folder: For their logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in reversed(self._running):
            process.terminate()
        for process in self._running:
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def start(self, *words: str, **settings: object) -> int:
        """Start a command that says on stdout when it is ready; returns its number for `ready`.

        Args:
            words: The command and its arguments.
            settings: Its settings; True is an option without a value.
        """
        number = len(self._running)
        with self._log(number).open("w") as errors:
            process = subprocess.Popen(
                _command(words, settings),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # Ctrl-C reaches it through us only
            )
        self._running.append(process)
        return number

    def ready(self, number: int) -> dict[str, Any]:
        """Wait until a process is ready; returns the JSON that it prints.

        Raises:
            ChainError: The process ended instead, or took too long; the end of its log says why.
        """
        process = self._running[number]
        timer = threading.Timer(_START_TIMEOUT_S, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
        finally:
            timer.cancel()
        record: dict[str, Any] = json.loads(line) if line else {}
        if not line or _EXIT_CODE in record:
            process.wait()
            raise ChainError("A process of the demo did not start.", why=_end_of(self._log(number)))
        return record

    def leave(self) -> tuple[int, ...]:
        """Leave the processes running after the block; returns their ids."""
        ids = tuple(process.pid for process in self._running)
        self._running = []
        return ids

    def _log(self, number: int) -> Path:
        return self._folder / f"process-{number}.log"


def command_text(*words: str, **settings: object) -> str:
    """A command as a person types it.

    Args:
        words: The command and its arguments.
        settings: Its settings; True is an option without a value, a tuple an option for each of its values.
    """
    return shlex.join(["shardhub", *words, *_options(settings)])


def _command(words: tuple[str, ...], settings: dict[str, object]) -> list[str]:
    return [sys.executable, "-m", "shardhub", *words, *_options(settings)]


def _options(settings: dict[str, object]) -> list[str]:
    options: list[str] = []
    for name, value in settings.items():
        for each in value if isinstance(value, tuple) else (value,):
            options += [f"--{name.replace('_', '-')}", *([] if each is True else [str(each)])]
    return options


def _end_of(log: Path) -> str:
    return log.read_text()[-_LOG_CHARACTERS:].strip()
