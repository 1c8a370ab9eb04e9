"""The C++ compiler that MLX's CPU backend calls when it first runs a kernel on Linux."""

from __future__ import annotations

import shutil
import sys

from shardhub.errors import ShardhubError


def check_compiler() -> None:
    """Refuse to start where MLX would fail at its first step.

    Raises:
        ShardhubError: There is no C++ compiler on Linux.
    """
    if sys.platform == "linux" and shutil.which("g++") is None:
        raise ShardhubError(
            "There is no C++ compiler.",
            why="On Linux MLX compiles its kernels with g++ when they first run.",
            hint="Install it: apt-get install g++ (Debian, Ubuntu) or dnf install gcc-c++ (Fedora)",
        )
