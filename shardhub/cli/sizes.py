"""Sizes on the command line: memory and context."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shardhub.errors import UsageError

# Positions a session may have unless told otherwise; less where the model was trained for less.
DEFAULT_CONTEXT = 8192
_UNITS = {"": 10**9, "GB": 10**9, "G": 10**9, "MB": 10**6, "M": 10**6, "GIB": 2**30, "MIB": 2**20, "TB": 10**12}


def parse_memory(text: str | None) -> int | None:
    """Bytes of `12GB`, `512MiB` or a plain number of GB; None stays None.

    Raises:
        UsageError: It is no size.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise UsageError(f"{text!r} is no amount of memory.", hint="Write it like 12GB, 512MB or 16GiB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def trained_context(config: Mapping[str, Any]) -> int | None:
    """Positions the model was trained for, if its config says."""
    for block in (config, config.get("text_config") or {}):
        for field in ("max_position_embeddings", "n_positions", "seq_length", "max_sequence_length"):
            if isinstance(block.get(field), int) and block[field] > 0:
                return int(block[field])
    return None


def default_context(config: Mapping[str, Any], asked: int | None) -> int:
    """Positions of a session: what was asked for, or the default within what the model was trained for.

    Raises:
        UsageError: More than the model was trained for, or less than two.
    """
    trained = trained_context(config)
    if asked is None:
        return min(DEFAULT_CONTEXT, trained or DEFAULT_CONTEXT)
    if asked < 2 or (trained is not None and asked > trained):
        raise UsageError(
            f"--context {asked} is not possible.", why=f"The model takes 2 to {trained or 'any number of'} positions."
        )
    return asked
