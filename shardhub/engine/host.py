"""Facts about this machine: they decide whether two machines compute alike, and are shown to people."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from shardhub.blas import describe_blas
from shardhub.memory_limits import installed_memory
from shardhub.version import __version__

_MAX_NAME = 100
# It answers in milliseconds.
_SYSCTL_S = 5


def host_facts() -> dict[str, str]:
    """Versions, operating system, chip, BLAS, MLX backend and memory; loads MLX, which provides some of them."""
    import mlx.core as mx

    from shardhub.model.memory import memory_budget

    device, chip = mx.default_device(), _chip()
    return {
        "shardhub": __version__,
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}",
        "chip": chip.chip,
        "cpu": chip.cpu,
        "blas": _blas(),
        "backend": "metal" if mx.metal.is_available() else ("cpu" if device.type == mx.DeviceType.cpu else "cuda"),
        "memory_bytes": str(installed_memory()),
        "budget_bytes": str(memory_budget()),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a machine's own tools report about its processors; fields are empty if they report nothing.

    Attributes:
        system: `platform.system()`.
        architecture: `platform.machine()`: arm64, x86_64.
        brand: macOS's machdep.cpu.brand_string, such as Apple M4 Max.
        gpu: Name of MLX's device, such as Apple M4 Max.
        cpuinfo: Linux's /proc/cpuinfo.
    """

    system: str
    architecture: str
    brand: str = ""
    gpu: str = ""
    cpuinfo: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """The names by which the processors of machines are compared.

    Attributes:
        chip: The target of MLX's kernels: the chip on a Mac, otherwise the architecture.
        cpu: The processor, by which libraries choose their kernels.
    """

    chip: str
    cpu: str


def name_chip(reading: Reading) -> Chip:
    """Name a machine's chip and processor.

    `platform.processor()` is "arm" on every Mac, which would make an M1 and an M4 seem to compute alike.
    """
    if reading.system == "Darwin":
        chip = reading.gpu or reading.brand
        return Chip(chip=chip[:_MAX_NAME], cpu=(reading.brand or reading.gpu)[:_MAX_NAME])
    fields: dict[str, str] = {}
    for line in reading.cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    cpu = fields.get("model name") or fields.get("cpu") or ""
    if not cpu and "cpu implementer" in fields:  # Linux on 64-bit ARM gives no model name
        cpu = f"ARM {fields['cpu implementer']} part {fields.get('cpu part', '?')}"
    return Chip(chip=reading.architecture[:_MAX_NAME], cpu=cpu[:_MAX_NAME])


@cache
def processor_name() -> str:
    """The processor's name, for people; loads no MLX."""
    brand = _brand() if platform.system() == "Darwin" else ""
    reading = Reading(
        system=platform.system(), architecture=platform.machine(), brand=brand, cpuinfo="" if brand else _cpuinfo()
    )
    chip = name_chip(reading)
    return chip.cpu or chip.chip


@cache
def _chip() -> Chip:
    """The names of this machine's chip and processor."""
    import mlx.core as mx

    device = mx.device_info() if mx.metal.is_available() else {}
    return name_chip(
        Reading(
            system=platform.system(),
            architecture=platform.machine(),
            brand=_brand() if platform.system() == "Darwin" else "",
            gpu=str(device.get("device_name", "")),
            cpuinfo=_cpuinfo(),
        )
    )


def _brand() -> str:
    """The processor's name from macOS; empty if it is not available."""
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SYSCTL_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@cache
def _blas() -> str:
    """The BLAS that MLX uses in this process, and what its numbers depend on."""
    import mlx.core as mx

    return "Accelerate" if platform.system() == "Darwin" else describe_blas(mx.__file__)[:200]
