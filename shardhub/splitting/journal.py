"""The journal of a split in progress: what every weight file was made of, and its sha256."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from shardhub.errors import UsageError
from shardhub.locks import lock_open
from shardhub.manifest import canonical
from shardhub.regular_files import read_file

JOURNAL_FILE = ".shardhub-split.journal"
# 65,536 files take 16 MB.
_MAX_BYTES = 256 << 20


@dataclass(slots=True, kw_only=True)
class Entries:
    """The journal's contents.

    Attributes:
        digests: sha256 of weight files by key; the key is a digest of what the file is made of.
        keys: Key of the file at each path below the folder, by path; the last line counts.
    """

    digests: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


class Journal:
    """Appends lines to the journal; a context manager that keeps other splits out of the folder.

    Args:
        folder: Folder in which the shards are made.
        checked: Whether to count only files checked for NaN and infinity, and to mark new ones as checked.
    """

    def __init__(self, folder: Path, *, checked: bool = False) -> None:
        self._checked = checked
        self._descriptor = os.open(folder / JOURNAL_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if not lock_open(self._descriptor):
            os.close(self._descriptor)
            raise UsageError(
                f"Another split is writing to {folder}.",
                why=f"It holds the lock on {JOURNAL_FILE}.",
                hint="Wait until it is done, or give another folder.",
            )
        self.entries = read_journal(folder, checked=checked)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def add(self, key: str, sha256: str, paths: list[str]) -> None:
        """Record that a file is on disk and about to appear at `paths`, where nothing may exist yet.

        The order makes a kill harmless: a path that the journal names either does not exist or holds this very file. A
        line lost to a power cut costs one more copy; it must not be lost only if the path had another key.
        """
        replaces = any(self.entries.keys.get(path, key) != key for path in paths)
        line = canonical({"key": key, "sha256": sha256, "paths": paths, **({"checked": True} if self._checked else {})})
        os.write(self._descriptor, b"\n" + line + b"\n")  # on a line of its own, even after half a line
        if replaces:
            os.fsync(self._descriptor)
        self.entries.digests[key] = sha256
        self.entries.keys.update(dict.fromkeys(paths, key))


def read_journal(folder: Path, *, checked: bool = False) -> Entries:
    """Read a folder's journal, empty if there is none; half a line left by a kill is skipped.

    Args:
        folder: Folder in which the shards are made.
        checked: As `Journal`.
    """
    entries = Entries()
    try:
        lines = read_file(folder / JOURNAL_FILE, _MAX_BYTES).splitlines()
    except FileNotFoundError:
        return entries
    for line in lines:
        try:
            entry = json.loads(line)
            key, sha256, paths = str(entry["key"]), str(entry["sha256"]), [str(path) for path in entry["paths"]]
        except (ValueError, TypeError, KeyError):
            continue
        if entry.get("checked") is True or not checked:
            entries.digests[key] = sha256
        entries.keys.update(dict.fromkeys(paths, key))
    return entries
