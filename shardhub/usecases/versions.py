"""The versions that `shardhub --version` prints."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> str:
    """Versions of shardhub and of the packages that determine its numbers, one per line."""
    names = ("shardhub", "mlx", "mlx-lm", "grpcio", "huggingface-hub", "safetensors", "transformers")
    lines = []
    for name in names:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name} not installed")
    return "\n".join([*lines, f"python {platform.python_version()}"])
