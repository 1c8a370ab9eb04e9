"""Panics of Rust libraries, which pyo3 raises as its own `BaseException`, so `except Exception` misses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shardhub.errors import PromptError


def is_panic(error: BaseException) -> bool:
    """Whether an exception is a Rust panic, whose class cannot be imported."""
    return type(error).__name__ == "PanicException" and not isinstance(error, Exception)


@contextmanager
def panics_as_errors(what: str) -> Iterator[None]:
    """Turn a panic inside the block into an error.

    Args:
        what: A sentence that says what failed.

    Raises:
        PromptError: The block panicked.
    """
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise PromptError(what, why=str(error)[:300]) from error
