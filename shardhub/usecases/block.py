"""What runs for as long as a `with` block does."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Block(ABC, Generic[T]):
    """A context manager that starts something in steps, and undoes them in reverse at its end, or if a step fails."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> T:
        try:
            return self._start(self._stack)
        except BaseException:
            self._stack.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @abstractmethod
    def _start(self, stack: contextlib.ExitStack) -> T:
        """Start it; what undoes a step goes on the stack."""
