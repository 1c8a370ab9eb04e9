"""The folder for what a machine remembers between runs, such as the history of chats."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> Path:
    """The user's folder of state; SHARDHUB_STATE names another."""
    import platformdirs

    named = os.environ.get("SHARDHUB_STATE")
    return Path(named) if named else Path(platformdirs.user_state_dir("shardhub"))
