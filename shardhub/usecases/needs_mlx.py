"""Importing what loads MLX, only where a use case needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shardhub.errors import UsageError


@contextmanager
def needs_mlx(consequence: str) -> Iterator[None]:
    """Run imports that load MLX.

    Args:
        consequence: What is impossible without it.

    Raises:
        UsageError: MLX cannot be imported on this machine.
    """
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"MLX cannot be imported here, so {consequence}.",
            why=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}.",
            hint="Run `shardhub doctor`.",
        ) from error
