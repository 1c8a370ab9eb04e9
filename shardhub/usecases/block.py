"""What runs for as long as a `with` block does."""

from __future__ import annotations

import atexit
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, TypeVar

from shardhub.errors import UsageError

T = TypeVar("T")


class Block(ABC, Generic[T]):
    """A context manager that starts something in steps, and undoes them in reverse at its end, or if a step fails.

    Leaving it twice, or before it was entered, does nothing. It may be entered again once it was left.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._is_entered = False

    def __enter__(self) -> T:
        with self._entering():
            try:
                started = self._start(self._stack)
            except BaseException:
                self._stack.close()
                raise
        atexit.register(self._stack.close)  # if nobody leaves it, as at the end of an interactive session
        return started

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._stack.close()
        finally:
            atexit.unregister(self._stack.close)
            self._is_entered = False

    @contextlib.contextmanager
    def _entering(self) -> Iterator[None]:
        """Count as entered from now on, unless the start fails.

        Raises:
            UsageError: It is entered already.
        """
        if self._is_entered:
            raise UsageError(
                "This context manager is already entered.",
                why="It runs one block at a time.",
                hint="Call the function that made it once for each block.",
            )
        self._is_entered = True
        try:
            yield
        except BaseException:
            self._is_entered = False
            raise

    @abstractmethod
    def _start(self, stack: contextlib.ExitStack) -> T:
        """Start it; what undoes a step goes on the stack."""
