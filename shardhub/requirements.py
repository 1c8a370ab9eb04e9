"""What MLX's wheels require of a machine, and a message for a machine that does not meet it.

Only the standard library of Python 3.9 is used: the build reads this file before anything is installed, with whatever
Python there is.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import NamedTuple

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)
OLDEST_MACOS = (14, 0)
OLDEST_GLIBC = (2, 35)
LINUX_ARCHITECTURES = ("x86_64", "aarch64")


class Machine(NamedTuple):
    """The facts that decide whether a wheel fits.

    Attributes:
        system: `platform.system()`.
        architecture: `platform.machine()` of this Python.
        macos: Release of macOS, such as 14.5; empty elsewhere.
        glibc: Release of glibc, such as 2.36; empty with another C library.
        python: Version of this Python, such as (3, 12).
    """

    system: str
    architecture: str
    macos: str
    glibc: str
    python: tuple[int, int]


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        macos=platform.mac_ver()[0],
        glibc=_glibc(),
        python=(sys.version_info[0], sys.version_info[1]),
    )


def unfitness(machine: Machine) -> str:
    """Why MLX cannot be installed on a machine, and what is required, in one or two sentences; empty if it can be."""
    if machine.system == "Darwin":
        if machine.architecture != "arm64":
            return (
                f"MLX on a Mac needs Apple silicon and a Python for arm64; this Python is for {machine.architecture}. "
                "On Apple silicon, install a native Python. An Intel Mac cannot run stages."
            )
        if _numbers(machine.macos) < OLDEST_MACOS:
            return f"MLX needs macOS {OLDEST_MACOS[0]} or later; this is macOS {machine.macos}."
    elif machine.system == "Linux":
        if machine.architecture not in LINUX_ARCHITECTURES:
            return f"MLX on Linux needs x86-64 or 64-bit ARM; this machine is {machine.architecture}."
        if not machine.glibc:
            return "MLX on Linux needs glibc; this system has another C library (as on Alpine Linux)."
        if _numbers(machine.glibc) < OLDEST_GLIBC:
            return (
                f"MLX needs glibc {OLDEST_GLIBC[0]}.{OLDEST_GLIBC[1]} or later (Ubuntu 22.04, Debian 12); "
                f"this system has {machine.glibc}."
            )
    else:
        return f"MLX needs macOS or Linux; this is {machine.system}. On Windows, use WSL 2 with Ubuntu 22.04 or later."
    if not OLDEST_PYTHON <= machine.python <= NEWEST_PYTHON:
        return "MLX needs Python 3.11 to 3.14; this is Python {}.{}.".format(*machine.python)
    return ""


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".")[:2] if part.isdigit())


def _glibc() -> str:
    """Release of the C library, if it is glibc."""
    try:
        name, _, release = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (AttributeError, ValueError, OSError):  # another system, or another C library
        return ""
    return release if name == "glibc" else ""
