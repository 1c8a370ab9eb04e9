"""What this process runs on: facts that say whether two machines compute alike, and that people ask for."""

from __future__ import annotations

import platform
from importlib.metadata import version

import mlx.core as mx

from shardhub import __version__
from shardhub.model.memory import installed_memory, memory_budget


def host_facts() -> dict[str, str]:
    """Versions, operating system, chip, MLX backend and memory."""
    device = mx.default_device()
    return {
        "shardhub": __version__,
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}",
        "chip": platform.processor() or platform.machine(),
        "backend": "metal" if mx.metal.is_available() else ("cpu" if device.type == mx.DeviceType.cpu else "cuda"),
        "memory_bytes": str(installed_memory()),
        "budget_bytes": str(memory_budget()),
    }
