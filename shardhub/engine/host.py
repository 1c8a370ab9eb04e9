"""What this process runs on: facts that say whether two machines compute alike, and that people ask for."""

from __future__ import annotations

import platform
import re
from functools import cache
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from shardhub import __version__
from shardhub.blas import describe_blas
from shardhub.model.memory import installed_memory, memory_budget


def host_facts() -> dict[str, str]:
    """Versions, operating system, chip, BLAS, MLX backend and memory."""
    device = mx.default_device()
    return {
        "shardhub": __version__,
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}",
        "chip": platform.processor() or platform.machine(),
        "cpu": _processor(),
        "blas": _blas(),
        "backend": "metal" if mx.metal.is_available() else ("cpu" if device.type == mx.DeviceType.cpu else "cuda"),
        "memory_bytes": str(installed_memory()),
        "budget_bytes": str(memory_budget()),
    }


@cache
def _processor() -> str:
    """The processor's own name: libraries choose their kernels by it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip()[:100] if found else platform.processor() or platform.machine()


@cache
def _blas() -> str:
    """The library that multiplies MLX's matrices in this process, and what its numbers depend on."""
    return "Accelerate" if platform.system() == "Darwin" else describe_blas(mx.__file__)[:200]
