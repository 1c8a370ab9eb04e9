"""Other Hubs than the user's own, by name: a document names a Hub, and each user's settings say where it is.

A token is only ever sent to the address that it was given for.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.errors import UsageError
from shardhub.hub.client import SOURCE_TOKEN_VARIABLE, hub_api
from shardhub.hub.reference import PUBLIC_ENDPOINT
from shardhub.naming import HUB_PATTERN
from shardhub.regular_files import read_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The public Hub, which every user knows.
PUBLIC_HUB = "huggingface"
# Far more than anybody has.
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownHub:
    """A Hub in a user's settings.

    Attributes:
        endpoint: Its URL.
        token: Token for this URL; None reads as anybody may.
    """

    endpoint: str
    token: str | None = None


def hubs_file() -> Path:
    """The file in which a user names other Hubs; SHARDHUB_HUBS names another one."""
    import platformdirs

    named = os.environ.get("SHARDHUB_HUBS")
    return Path(named) if named else platformdirs.user_config_path("shardhub") / "hubs.toml"


def known_hubs() -> dict[str, KnownHub]:
    """Read the Hubs that the user has named, and the public one.

    Raises:
        UsageError: The file is not what it should be.
    """
    hubs = {PUBLIC_HUB: KnownHub(endpoint=PUBLIC_ENDPOINT)}
    path = hubs_file()
    try:
        tables = tomllib.loads(read_file(path, _MAX_BYTES).decode())
    except FileNotFoundError:
        return hubs
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read.", why=f"{error}.", hint=_EXAMPLE) from error
    if any(isinstance(table, Mapping) and "token" in table for table in tables.values()) and _is_shared(path):
        raise UsageError(
            f"{path} holds a token, and other users of this machine can read it.", hint=f"Run: chmod 600 {path}"
        )
    return hubs | {name: _known(path, name, table) for name, table in tables.items()}


def named_hub(name: str) -> HfApi:
    """Make the client of a Hub that a document names.

    Raises:
        UsageError: The user's settings do not say where it is.
    """
    hubs = known_hubs()
    if name not in hubs:
        raise UsageError(
            f"The weights lie on a Hub that is not known here: {name!r}.",
            why=f"{hubs_file()} does not name it. Known: {', '.join(sorted(hubs))}.",
            hint=f"Ask the publisher for its address. {_EXAMPLE}",
        )
    own, known = hub_api(), hubs[name]
    if known.token is None and known.endpoint == own.endpoint:
        return own
    return hub_api(known.endpoint, known.token or False)


def name_of(endpoint: str) -> str | None:
    """The name under which the user's settings know a Hub; None if they do not."""
    plain = endpoint.rstrip("/")
    return next((name for name, known in known_hubs().items() if known.endpoint == plain), None)


def source_api(endpoint: str | None) -> HfApi:
    """Make the client of the Hub that a model is read from.

    Another Hub than the environment's gets the token in `SOURCE_TOKEN_VARIABLE`, or the one in the user's settings, or
    none.

    Args:
        endpoint: Its URL; None for the Hub of the environment.
    """
    own = hub_api()
    if endpoint is None or endpoint.rstrip("/") == own.endpoint:
        return own
    if (token := os.environ.get(SOURCE_TOKEN_VARIABLE) or None) is None and (name := name_of(endpoint)) is not None:
        token = known_hubs()[name].token
    return hub_api(endpoint, token or False)


def hub_example(endpoint: str) -> str:
    """A hint that shows how a Hub is named in the user's settings."""
    return f'Write there, for instance: home = {{ endpoint = "{endpoint}", token = "hf_..." }}'


_EXAMPLE = hub_example("https://hub.example.org")


def _is_shared(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o077)


def _known(path: Path, name: str, table: object) -> KnownHub:
    fault = None
    if not re.fullmatch(HUB_PATTERN, name):
        fault = f"{name[:80]!r} is not a name: write small letters, digits, '.' and '-'"
    elif not isinstance(table, Mapping) or not {"endpoint"} <= set(table) <= {"endpoint", "token"}:
        fault = f"[{name}] needs an endpoint, and may have a token"
    elif not all(isinstance(value, str) and value for value in table.values()):
        fault = f"the values of [{name}] are not texts"
    elif not table["endpoint"].startswith(("https://", "http://")):
        fault = f"{table['endpoint'][:80]!r} is not the URL of a Hub"
    if fault is not None or not isinstance(table, Mapping):
        raise UsageError(f"{path} is malformed.", why=f"{fault}.", hint=_EXAMPLE)
    return KnownHub(endpoint=table["endpoint"].rstrip("/"), token=table.get("token"))
