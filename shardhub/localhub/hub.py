"""A Hub's data folder, opened by one process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from shardhub.errors import UsageError
from shardhub.localhub.catalog import FILE, Catalog
from shardhub.localhub.outlines import Outlines
from shardhub.localhub.rendered_cards import RenderedCards
from shardhub.localhub.signing import Signer
from shardhub.localhub.store import BlobStore
from shardhub.localhub.tokens import make_token
from shardhub.localhub.uploads import Uploads
from shardhub.localhub.xet.xorbs import Xorbs
from shardhub.locks import lock_open

_LOCK_FILE = "lock"


class LocalHub:
    """The Hub in a folder: its database, blobs and uploads; a context manager.

    While it is open, no other process can serve the folder or collect its garbage; tokens can still be made.

    Args:
        folder: The folder; made if missing.

    Raises:
        UsageError: Another process has it open, or the folder holds something else.
        FormatError: The database cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        check_folder(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _locked(folder / _LOCK_FILE)
        try:
            self.catalog = Catalog(folder)
            self.outlines = Outlines(self.catalog)
            self.store = BlobStore(folder)
            self.uploads = Uploads(folder, self.store)
            self.store.sweep()
            self.uploads.sweep()
            self.xorbs = Xorbs(folder, self.catalog, self.store)
            self.xorbs.sweep()
            self.signer = Signer(self.catalog.secret())
            self.cards = RenderedCards()
        except BaseException:
            os.close(self._lock)
            raise

    def token(self, user: str, *, role: str = "write", groups: Sequence[str] = ()) -> str:
        """Make a token; see `tokens.make_token`."""
        return make_token(self.catalog, user, role=role, groups=groups)

    def close(self) -> None:
        """Close the database and release the folder."""
        self.catalog.close()
        os.close(self._lock)

    def __enter__(self) -> LocalHub:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def holds_hub(folder: Path) -> bool:
    """Whether a folder holds a Hub."""
    return (folder / FILE).is_file()


def check_folder(folder: Path) -> None:
    """Refuse to make a Hub in a folder with other contents.

    Raises:
        UsageError: The folder is not empty and does not hold a Hub.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.", hint="Give a folder for the Hub's data.")
    if not holds_hub(folder) and any(child.name != _LOCK_FILE for child in folder.iterdir()):
        raise UsageError(
            f"{folder} is not a Hub's folder.",
            why=f"It is not empty, and does not contain {FILE}.",
            hint="Give the Hub's folder, or an empty folder for a new Hub.",
        )


def _locked(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not lock_open(handle):
        os.close(handle)
        raise UsageError(
            f"The Hub in {path.parent} is in use.",
            why="Another process serves it or deletes its unused files.",
            hint="Stop that process first, or give another folder.",
        )
    return handle
