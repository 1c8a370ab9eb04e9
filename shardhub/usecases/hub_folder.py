"""The folder of this user's own Hub."""

from __future__ import annotations

from pathlib import Path

from shardhub.errors import UsageError
from shardhub.localhub.hub import holds_hub


def new_hub_folder(folder: Path | None) -> Path:
    """The folder in which a Hub is made: the given one, or by default one of this user's.

    Raises:
        UsageError: The folder already holds a Hub.
    """
    place = folder or _default_folder()
    if holds_hub(place):
        raise UsageError(f"{place} already holds a Hub.", hint="Create a token with `shardhub hub token USER`.")
    return place


def hub_folder(folder: Path | None) -> Path:
    """The folder of a Hub: the given one, or by default one of this user's.

    Raises:
        UsageError: The folder does not hold a Hub.
    """
    place = folder or _default_folder()
    if not holds_hub(place):
        raise UsageError(
            f"{place} does not hold a Hub.",
            hint="Create one with `shardhub hub init`, or give the folder of an existing one with `dir`.",
        )
    return place


def _default_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_data_dir("shardhub")) / "hub"
