"""Of several files, the one that was read last, kept open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from shardhub.checkpoint.header import ByteSource

K = TypeVar("K")


class LastOpened(Generic[K]):
    """Keeps only the last file open, because ranges come in the order of their files.

    Each open file on a Hub takes one of the client's hundred connections, and ranges may lie in any number of files.

    Args:
        open_file: Opens a file by its key.
    """

    def __init__(self, open_file: Callable[[K], ByteSource]) -> None:
        self._open_file = open_file
        self._last: tuple[K, ByteSource] | None = None

    def file(self, key: K) -> ByteSource:
        """Open a file, or return it if it is open."""
        if self._last is None or self._last[0] != key:
            self.close()
            self._last = (key, self._open_file(key))
        return self._last[1]

    def close(self) -> None:
        """Close the open file."""
        if self._last is not None:
            self._last[1].close()
            self._last = None
