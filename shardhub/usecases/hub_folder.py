"""The folder of this user's own Hub."""

from __future__ import annotations

from pathlib import Path

from shardhub.errors import UsageError
from shardhub.localhub.hub import holds_hub


def new_hub_folder(folder: Path | None) -> Path:
    """The folder in which a Hub is made: the given one, or by default one of this user's.

    Raises:
        UsageError: It holds a Hub already.
    """
    place = folder or _default_folder()
    if holds_hub(place):
        raise UsageError(f"{place} holds a Hub already.", hint="Make a token with `shardhub hub token USER`.")
    return place


def hub_folder(folder: Path | None) -> Path:
    """The folder of a Hub: the given one, or by default one of this user's.

    Raises:
        UsageError: There is no Hub in it.
    """
    place = folder or _default_folder()
    if not holds_hub(place):
        raise UsageError(
            f"There is no Hub in {place}.", hint="Make one with `shardhub hub init`, or name it with `dir`."
        )
    return place


def _default_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_data_dir("shardhub")) / "hub"
