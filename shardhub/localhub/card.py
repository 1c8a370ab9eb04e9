"""The YAML front matter of a README.md: the metadata the Hub shows for a repo, and its validation.

Anyone who may push can write a card, and it is read for everybody who lists repos. Its values are converted to JSON one
by one: a value that JSON cannot express stays as its source text, so a bad value spoils only itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yaml import Node, SafeLoader, ScalarNode  # type: ignore[import-untyped]

# Far longer than any card; YAML is parsed in pure Python, at about a megabyte a second.
MAX_FRONT_MATTER_CHARS = 64 << 10
# Nested lists: a card has three or four levels, and PyYAML checks all open ones for each token.
_MAX_DEPTH = 32
# YAML events: values, and starts and ends of lists. A card with evaluation results has thousands; this many take half
# a second.
_MAX_EVENTS = 10_000
# The range of integers on which readers of JSON agree.
_MAX_INTEGER = 1 << 63
# Fields the Hub turns into tags, besides `tags` itself.
_TAG_FIELDS = {
    "library_name": "",
    "pipeline_tag": "",
    "license": "license:",
    "base_model": "base_model:",
    "language": "",
}


class CardError(ValueError):
    """The front matter is unusable; the message says why."""


def front_matter(text: str) -> dict[str, Any]:
    """Parse the metadata block at a card's start into JSON values; empty if there is none.

    Raises:
        CardError: The block is not closed, not YAML, not a mapping, too long, or too deep.
    """
    import yaml

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
        _check_events(yaml.parse(block, Loader=yaml.SafeLoader))
        root = yaml.compose(block, Loader=yaml.SafeLoader)
        data = None if root is None else _json(root, yaml.SafeLoader(""))
    except CardError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise CardError(f"The metadata block is not YAML: {_without_surrogates(str(error))}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise CardError("The metadata block is not a mapping of names to values.")
    return data


def tags(metadata: dict[str, Any]) -> list[str]:
    """Derive the Hub's tags from a card's metadata."""
    collected = _texts(metadata.get("tags"))
    for name, prefix in _TAG_FIELDS.items():
        collected.extend(prefix + value for value in _texts(metadata.get(name)))
    return list(dict.fromkeys(collected))


def _check_events(events: Iterable[object]) -> None:
    """Refuse YAML that would expand when it is loaded, before loading it.

    Raises:
        CardError: There are aliases, too many values, or lists and mappings nested too deeply.
    """
    import yaml

    depth = 0
    for number, event in enumerate(events):
        if number == _MAX_EVENTS:
            raise CardError(f"The metadata block has more than {_MAX_EVENTS} values.")
        if isinstance(event, yaml.AliasEvent):  # a few aliases of aliases make gigabytes of JSON
            raise CardError("The metadata block has aliases (*name), which are not accepted.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise CardError(f"The metadata block nests lists and mappings more than {_MAX_DEPTH} deep.")


def _json(node: Node, loader: SafeLoader) -> Any:
    """Convert a node's value to JSON, whatever its tag; keys that are not scalars are left out."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        return {
            _without_surrogates(key.value): _json(value, loader)
            for key, value in node.value
            if isinstance(key, yaml.ScalarNode)
        }
    if isinstance(node, yaml.SequenceNode):
        return [_json(item, loader) for item in node.value]
    return _scalar(node, loader)


def _scalar(node: ScalarNode, loader: SafeLoader) -> Any:
    """Convert a YAML scalar to JSON; what JSON cannot express (dates, NaN, a mismatched tag) becomes its text."""
    kind = node.tag.rpartition(":")[2]
    try:
        if kind == "null":
            return None
        if kind == "bool":
            return loader.construct_yaml_bool(node)
        if kind == "int" and -_MAX_INTEGER <= (integer := loader.construct_yaml_int(node)) < _MAX_INTEGER:
            return integer
        if kind == "float" and math.isfinite(number := loader.construct_yaml_float(node)):
            return number
    except (ValueError, LookupError, ArithmeticError):  # `!!int ''`, `!!bool maybe`, `1:1:...:1.5`
        pass
    return _without_surrogates(node.value)


def _without_surrogates(text: str) -> str:
    """Join surrogate pairs and replace unpaired surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]
