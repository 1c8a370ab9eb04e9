"""Shortages of a machine, recognised in the errors of Python, MLX and the system."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from shardhub.errors import ChainError, DiskFull, DoesNotFit, ResourceError, outcome
from shardhub.shortage import shortage


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[malloc] Unable to allocate 123 bytes."),
        RuntimeError("std::bad_alloc"),
        ImportError("libmlx.so: failed to map segment from shared object"),
        ImportError("cannot allocate memory in static TLS block"),
    ],
)
def test_lack_of_memory_is_reported(error: Exception) -> None:
    """A failed allocation has the exit code for memory, whatever raised it."""
    assert type(shortage(error)) is DoesNotFit


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        RuntimeError("thread constructor failed: Resource temporarily unavailable"),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    ],
)
def test_lack_of_processes_is_reported(error: Exception) -> None:
    """A thread or process that cannot be started is reported with the limit and how to raise it."""
    lack = shortage(error)
    assert type(lack) is ResourceError
    assert "ulimit -u" in lack.hint


def test_lack_of_files_and_room_is_reported() -> None:
    """Exhausted file descriptors and a full disk are reported likewise."""
    files, disk = shortage(OSError(errno.EMFILE, "Too many open files")), shortage(OSError(errno.ENOSPC, "No space"))
    assert type(files) is ResourceError
    assert "ulimit -n" in files.hint
    assert type(disk) is DiskFull
    assert all(outcome(error).exit == 6 for error in (files, disk))


def test_cause_behind_an_error_counts() -> None:
    """A shortage is recognised in the cause of another error; other errors, and our own, are left alone."""
    wrapped = ValueError("loading failed")
    wrapped.__cause__ = MemoryError()
    assert type(shortage(wrapped)) is DoesNotFit
    assert shortage(ValueError("fault")) is None
    assert shortage(RuntimeError("shapes differ")) is None
    assert shortage(ChainError("gone")) is None


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
sys.argv = ["shardhub", "generate", "/nowhere", "--prompt", "x"]
from shardhub.cli import main
main()
"""


def test_too_little_address_space_is_reported_as_lack_of_memory() -> None:
    """Where MLX cannot be loaded the command ends with the exit code for memory, and names the limit."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 6, done.stderr
    assert "address space is limited to 0.63 GB" in done.stderr


def test_first_cause_is_told_and_on_one_line() -> None:
    """The first cause is reported on one line, even if a package wraps it in long advice."""
    try:
        try:
            raise ImportError("libz.so: failed to map segment from shared object")
        except ImportError as error:
            raise ImportError(f"IMPORTANT:\n\nPLEASE READ THIS\n{error}") from error
    except ImportError as error:
        lacking = shortage(error)
    assert isinstance(lacking, DoesNotFit)
    assert "ImportError: libz.so: failed to map segment" in lacking.why
    assert "\n" not in lacking.why
    assert "PLEASE" not in lacking.why
