"""Location of templates/ and protos/: inside the package in a wheel, beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource(folder: str) -> Path:
    """Path of `templates` or `protos`.

    Raises:
        FileNotFoundError: The installation lacks the folder.
    """
    for parent in (_PACKAGE, _PACKAGE.parent):
        path = parent / folder
        if path.is_dir():
            return path
    raise FileNotFoundError(f"the installation of shardhub lacks {folder}/: reinstall shardhub")
