"""Where this user's certificates and authority are."""

from __future__ import annotations

import os
from pathlib import Path

TLS_VARIABLE = "SHARDHUB_TLS"


def default_folder() -> Path:
    """The default folder of this user's certificates."""
    import platformdirs

    return platformdirs.user_config_path("shardhub") / "tls"


def default_authority() -> Path:
    """The default folder of this user's authority."""
    import platformdirs

    return platformdirs.user_config_path("shardhub") / "authority"


def named_folder() -> Path | None:
    """The folder of certificates that SHARDHUB_TLS names, if any."""
    named = os.environ.get(TLS_VARIABLE)
    return Path(named) if named else None
