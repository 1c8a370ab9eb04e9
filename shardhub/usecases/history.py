"""The questions of earlier chats, in a file that only their user can read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from shardhub.usecases.state import state_folder
from shardhub.whole_files import write_whole

# As many as shells keep; a longer file is cut to this when it is read.
MAX_ENTRIES = 1000
# A pasted document is no help in a history, and would fill it.
_MAX_ENTRY_BYTES = 8 << 10
# Several chats append to the file while it is cut at the beginning of one: it grows only so far between.
_MAX_FILE_BYTES = 16 << 20
_MODE = 0o600


class History:
    """A file of texts, the latest last: a JSON string a line. Several processes may append to it.

    Args:
        file: The file; by default the user's.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or state_folder() / "chat-history"

    def read(self) -> list[str]:
        """The latest entries, the oldest first; lines that cannot be read are left out.

        Raises:
            OSError: The file cannot be read, or not be made the user's own.
        """
        try:
            self.file.chmod(_MODE)
            with self.file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _MAX_FILE_BYTES))
                lines = file.read().splitlines()
        except FileNotFoundError:
            return []
        entries = [text for line in lines if (text := _decoded(line)) is not None]
        if len(lines) > 2 * MAX_ENTRIES or size > _MAX_FILE_BYTES:
            entries = entries[-MAX_ENTRIES:]
            write_whole(self.file, b"".join(map(_encoded, entries)), mode=_MODE)
        return entries[-MAX_ENTRIES:]

    def append(self, text: str) -> None:
        """Append an entry, unless it is long.

        Raises:
            OSError: The file cannot be written.
        """
        line = _encoded(text)
        if len(line) > _MAX_ENTRY_BYTES:
            return
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            os.write(descriptor, line)  # in one call, so that those of other chats stay whole
        finally:
            os.close(descriptor)


def _encoded(text: str) -> bytes:
    return json.dumps(text).encode() + b"\n"


def _decoded(line: bytes) -> str | None:
    try:
        text = json.loads(line)
    except ValueError:
        return None
    return text if isinstance(text, str) else None
