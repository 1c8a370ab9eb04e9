"""Finds the fields of a request that have no effect: `foo`, `tools[0].function.foo`, `messages[2].name`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from pydantic import BaseModel

from shardhub.gateway.foreign import is_ignored

# Maximum number of paths in a header; the rest is left out.
MAX_NAMED = 20
# Maximum number of characters of a path.
_MAX_PATH_CHARS = 80
# Fields of messages that are never named: they shape the conversation whatever the template reads, or are bookkeeping.
_MESSAGE_FIELDS = frozenset(
    """
    tool_call_id reasoning_content reasoning reasoning_details thinking thinking_blocks signature refusal
    annotations id type status function_call tool_name images provider_specific_fields prefix partial
    cache_control audio phase
    """.split()  # noqa: SIM905 - one a line would hide the rest
)


def ignored_fields(body: BaseModel) -> Iterator[str]:
    """Yield the paths of fields that no model of the API knows, at every depth.

    Messages are left to `ignored_of_messages`.

    Args:
        body: A parsed request.
    """
    yield from _of_model(body, "")


def ignored_of_messages(messages: Sequence[BaseModel], template: str | None) -> list[str]:
    """Paths of the fields of messages that the chat template never reads.

    Args:
        template: The model's chat template; a field that its loops over messages read counts as read.
    """
    read = _read_by(template or "")
    paths = (
        f"messages[{index}].{name}"
        for index, message in enumerate(messages)
        for name, value in (message.model_extra or {}).items()
        if value is not None and name not in _MESSAGE_FIELDS and name not in read
    )
    return list(islice(paths, MAX_NAMED + 1))


def header_of(paths: Iterator[str] | Sequence[str]) -> str | None:
    """The warning header's value, or None without ignored fields: one line of printable ASCII of bounded length."""
    names = list(islice(iter(paths), MAX_NAMED + 1))
    if not names:
        return None
    # Quoted, since a header's value cannot begin or end with a blank, and a name can be a blank.
    shown = [repr("".join(c if c.isascii() and c.isprintable() else "?" for c in name)) for name in sorted(names)]
    more = ", and more" if len(names) > MAX_NAMED else ""
    return f"ignored unknown fields: {', '.join(shown[:MAX_NAMED])}{more}"


def _of_model(model: BaseModel, prefix: str) -> Iterator[str]:
    for name, value in (model.model_extra or {}).items():
        if is_ignored(name, value):
            yield f"{prefix}{name}"[:_MAX_PATH_CHARS]
    for name, field in type(model).model_fields.items():
        if name != "messages":
            yield from _of_value(getattr(model, name), f"{prefix}{field.alias or name}")


def _of_value(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from _of_model(value, f"{path}.")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            if isinstance(each, BaseModel):
                yield from _of_model(each, f"{path}[{index}].")


@lru_cache(maxsize=8)
def _read_by(template: str) -> frozenset[str]:
    """Names that a template reads from messages: `message.name`, `m['name']`, `messages[0].get("name")`."""
    loops = set(re.findall(r"\bfor\s+(\w+)\s+in\s+[^%{}]{0,200}messages", template))
    one = "|".join(map(re.escape, sorted(loops | {"message"}))) + r"|\w*messages\s*\[[^\]]{1,40}\]"
    places = re.findall(
        rf"""(?:\b(?:{one}))\s*(?:\.get\(\s*['"](\w+)|\.(\w+)|\[\s*['"](\w+)['"]\s*\])|['"](\w+)['"]\s+in\s+(?:{one})\b""",
        template,
    )
    return frozenset(name for names in places for name in names if name)
