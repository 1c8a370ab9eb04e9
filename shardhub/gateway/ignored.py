"""Which fields of a request have no effect, by their paths: `foo`, `tools[0].function.foo`, `messages[2].name`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from pydantic import BaseModel

from shardhub.gateway.foreign import is_ignored

# Paths that a header names; a client that sends more reads the first.
MAX_NAMED = 20
# Characters of one.
_MAX_PATH_CHARS = 80
# Fields of messages that matter to the conversation, whether or not a template shows them, or only keep books.
_MESSAGE_FIELDS = frozenset(
    """
    tool_call_id reasoning_content reasoning reasoning_details thinking thinking_blocks signature refusal
    annotations id type status function_call tool_name images provider_specific_fields prefix partial
    cache_control audio phase
    """.split()  # noqa: SIM905 - one a line would hide the rest
)


def ignored_fields(body: BaseModel) -> Iterator[str]:
    """Paths of fields that no model of the API knows, at every depth; messages have their own way, see below.

    Args:
        body: A request, parsed.
    """
    yield from _of_model(body, "")


def ignored_of_messages(messages: Sequence[BaseModel], template: str | None) -> list[str]:
    """Paths of fields of messages that the chat template never looks at.

    Args:
        template: The model's; what its loops over messages read counts as read.
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
    """What a header says of ignored fields, or None without any: printable ASCII on one line, and not too long."""
    names = list(islice(iter(paths), MAX_NAMED + 1))
    if not names:
        return None
    # Quoted: a header's value neither begins nor ends with a blank, and a name may be one.
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
    """Names that a template reads of its messages: `message.name`, `m['name']`, `messages[0].get("name")`."""
    loops = set(re.findall(r"\bfor\s+(\w+)\s+in\s+[^%{}]{0,200}messages", template))
    one = "|".join(map(re.escape, sorted(loops | {"message"}))) + r"|\w*messages\s*\[[^\]]{1,40}\]"
    places = re.findall(
        rf"""(?:\b(?:{one}))\s*(?:\.get\(\s*['"](\w+)|\.(\w+)|\[\s*['"](\w+)['"]\s*\])|['"](\w+)['"]\s+in\s+(?:{one})\b""",
        template,
    )
    return frozenset(name for names in places for name in names if name)
