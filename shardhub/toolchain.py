"""What a machine needs beside this package: MLX, and on Linux the C++ compiler that MLX's CPU backend calls."""

from __future__ import annotations

import shutil
import sys

from shardhub.errors import ShardhubError
from shardhub.requirements import Machine, this_machine, unfitness

_MLX = ("mlx", "mlx_lm")
_INSTALL_AGAIN = "Install it again: pip install --force-reinstall shardhub"


def check_compiler() -> None:
    """Refuse to start if MLX would fail at its first step.

    Raises:
        ShardhubError: The machine runs Linux and has no C++ compiler.
    """
    if sys.platform == "linux" and shutil.which("g++") is None:
        raise ShardhubError(
            "A C++ compiler is missing.",
            why="On Linux, MLX compiles its kernels with g++ when they first run.",
            hint="Install it: apt-get install g++ (Debian, Ubuntu) or dnf install gcc-c++ (Fedora)",
        )


def mlx_missing(error: BaseException, machine: Machine | None = None) -> ShardhubError | None:
    """The error to raise if an import of MLX failed; None for any other exception.

    Args:
        error: The exception that was raised.
        machine: The machine to check against MLX's requirements; this one by default.
    """
    if not isinstance(error, ImportError) or (error.name or "").partition(".")[0] not in _MLX:
        return None
    reason = unfitness(machine or this_machine())
    why = reason or f"{str(error).partition(chr(10))[0].rstrip('.')[:300]}."
    return ShardhubError("MLX cannot be loaded.", why=why, hint="" if reason else _INSTALL_AGAIN)
