"""The YAML front matter of a README.md: what the Hub shows of a repo, and whether it accepts it."""

from __future__ import annotations

import json
from typing import Any

# Far more than any card; YAML is parsed in pure Python, at about a megabyte a second.
MAX_FRONT_MATTER_CHARS = 64 << 10
# Fields the Hub turns into tags, besides `tags` itself.
_TAG_FIELDS = {
    "library_name": "",
    "pipeline_tag": "",
    "license": "license:",
    "base_model": "base_model:",
    "language": "",
}


class CardError(ValueError):
    """The front matter is not usable; the message says why."""


def front_matter(text: str) -> dict[str, Any]:
    """The metadata block at a card's start; empty if there is none.

    Raises:
        CardError: It is not closed, not YAML, not a mapping, or too long.
    """
    import yaml  # type: ignore[import-untyped]

    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    try:
        end = next(number for number, line in enumerate(lines[1:], start=1) if line.rstrip() == "---")
    except StopIteration:
        raise CardError("The metadata block is not closed: a line '---' is missing.") from None
    block = "\n".join(lines[1:end])
    if len(block) > MAX_FRONT_MATTER_CHARS:
        raise CardError(f"The metadata block is longer than {MAX_FRONT_MATTER_CHARS} characters.")
    try:
        # A few aliases of aliases make gigabytes of JSON.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(block, Loader=yaml.SafeLoader)):
            raise CardError("The metadata block has aliases (*name), which are not accepted.")
        # Dates, NaN and the like become text, as in the Hub's JSON.
        data = json.loads(json.dumps(yaml.safe_load(block), default=str), parse_constant=str)
    except CardError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise CardError(f"The metadata block is not YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise CardError("The metadata block is not a mapping of names to values.")
    return data


def tags(metadata: dict[str, Any]) -> list[str]:
    """The tags the Hub derives from a card's metadata."""
    found = _texts(metadata.get("tags"))
    for name, prefix in _TAG_FIELDS.items():
        found.extend(prefix + value for value in _texts(metadata.get(name)))
    return list(dict.fromkeys(found))


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]
