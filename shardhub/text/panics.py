"""Panics of libraries in Rust, which pyo3 raises as a `BaseException` of its own, past every `except Exception`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shardhub.errors import PromptError


def is_panic(error: BaseException) -> bool:
    """Whether an exception is a panic; its class cannot be imported."""
    return type(error).__name__ == "PanicException" and not isinstance(error, Exception)


@contextmanager
def panics_told(what: str) -> Iterator[None]:
    """Turn a panic of the block into an error.

    Args:
        what: What happens then, in a sentence.

    Raises:
        PromptError: It panicked.
    """
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise PromptError(what, why=str(error)[:300]) from error
