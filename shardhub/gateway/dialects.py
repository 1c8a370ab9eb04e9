"""Translates clients' JSON schemas into the dialect that the grammar compiler knows.

Keywords of older drafts, OpenAPI and Gemini become those of draft 2020-12; annotations are left out. Keywords that
cannot be followed stay, and the compiler refuses them by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

# llguidance refuses deeper schemas.
_MAX_DEPTH = 128
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTED = ("prefixItems", "anyOf", "oneOf", "allOf")
_ALONE = ("items", "additionalProperties", "additionalItems", "contains", "not", "if", "then", "else", "propertyNames")
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
# Source: JSON Schema 2020-12, validation, section 7.3. A format of another name is an annotation.
_FORMATS = {
    *("date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uri"),
    *("uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer", "relative-json-pointer"),
    "regex",
}
_NUMBER_TYPES = frozenset(("integer", "number"))
# Constructs that finite automata cannot match: lookarounds and backreferences.
_LOOKS = re.compile(r"\(\?<?[=!]|\\[1-9]|\(\?P=")
_PLAIN_NAME = re.compile(r"[\w-]+")
# Keywords that have no effect with these values.
_EMPTY: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "minContains": (0,),
    "patternProperties": ({},),
    "propertyNames": ({}, True),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "not": (False,),
    "allOf": ([],),
}


def plain_schema(schema: Any) -> dict[str, Any]:
    """Translate a schema for the compiler. Whatever fits the result also fits the given schema.

    Args:
        schema: JSON-able data.

    Raises:
        ValueError: `schema` is not a schema, or allows no value.
    """
    if schema is True:
        return {}
    if schema is False:
        raise ValueError("the schema `false` allows no answer")
    if not isinstance(schema, dict):
        raise ValueError(f"a schema is an object, not {json.dumps(schema)[:40]}")
    return {name: value for name, value in _plain(schema, 0).items() if name != "$schema"}


def _plain(schema: Any, depth: int) -> Any:
    if not isinstance(schema, dict) or depth >= _MAX_DEPTH:
        return schema
    plain = {name: value for name, value in schema.items() if not _is_empty(name, value)}
    for name, value in plain.items():
        if name in _NAMED and isinstance(value, dict):
            plain[name] = {key: _plain(inner, depth + 1) for key, inner in value.items()}
        elif name in _LISTED and isinstance(value, list):
            plain[name] = [_plain(inner, depth + 1) for inner in value]
        elif name in _ALONE:
            plain[name] = (
                [_plain(inner, depth + 1) for inner in value] if isinstance(value, list) else _plain(value, depth + 1)
            )
    for rewrite in _REWRITES:
        rewrite(plain)
    return plain


def _is_empty(name: str, value: Any) -> bool:
    return any(value is each or (value == each and type(value) is type(each)) for each in _EMPTY.get(name, ()))


def _types(schema: dict[str, Any]) -> None:
    """Translate types: Gemini writes STRING, `any` allows every type, OpenAPI's `nullable` adds null."""
    kind = schema.get("type")
    names = [name for name in (kind if isinstance(kind, list) else [kind]) if isinstance(name, str)]
    if names and len(names) == (len(kind) if isinstance(kind, list) else 1):
        lower = [name.lower() if name.lower() in _TYPES else name for name in names]
        schema["type"] = lower if isinstance(kind, list) else lower[0]
        if "any" in names:
            del schema["type"]
    if schema.pop("nullable", None) is True and isinstance(schema.get("type"), str) and "const" not in schema:
        schema["type"] = list(dict.fromkeys((schema["type"], "null")))
        if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
            schema["enum"] = [*schema["enum"], None]


def _bounds(schema: dict[str, Any]) -> None:
    """Translate bounds: in draft 4, `exclusiveMinimum` and `exclusiveMaximum` are booleans beside the bound."""
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(schema.get(exclusive), bool):
            is_exclusive = schema.pop(exclusive)
            if is_exclusive and bound in schema:
                schema[exclusive] = schema.pop(bound)
    # Some programs write lengths and counts as floats.
    for name in ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"):
        if isinstance(schema.get(name), float) and schema[name].is_integer():
            schema[name] = int(schema[name])


def _items(schema: dict[str, Any]) -> None:
    """Translate `items`: before 2020-12, a list under it held one schema for each position."""
    if isinstance(schema.get("items"), list):
        places = schema.pop("items")
        if places:
            schema["prefixItems"] = places
        if "additionalItems" in schema:
            schema["items"] = schema["additionalItems"]
    schema.pop("additionalItems", None)
    if schema.get("uniqueItems") is True and schema.get("maxItems") in (0, 1):
        del schema["uniqueItems"]


def _required(schema: dict[str, Any]) -> None:
    """Translate `required`, which draft 3 writes inside each property."""
    if isinstance(schema.get("required"), bool):
        del schema["required"]


def _formats(schema: dict[str, Any]) -> None:
    if schema.get("format") not in _FORMATS or schema.get("type") in _NUMBER_TYPES:
        schema.pop("format", None)


def _options(schema: dict[str, Any]) -> None:
    """Drop options whose expressions look around, where others remain: pydantic's decimals are also numbers.

    Options that allow no value are dropped as well: Zod writes `{"not": {}}` for an optional value.
    """
    options = schema.get("anyOf")
    if isinstance(options, list):
        kept = [option for option in options if not _looks_around(option) and not _fits_nothing(option)]
        schema["anyOf"] = kept or options


def _looks_around(schema: Any) -> bool:
    pattern = schema.get("pattern") if isinstance(schema, dict) else None
    return isinstance(pattern, str) and _LOOKS.search(pattern) is not None


def _fits_nothing(schema: Any) -> bool:
    return isinstance(schema, dict) and "not" in schema and schema["not"] in ({}, True)


def _further(schema: dict[str, Any]) -> None:
    """Translate `unevaluatedProperties`, which equals `additionalProperties` where no other schema applies."""
    elsewhere = ("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "not", "dependentSchemas")
    if "unevaluatedProperties" in schema and not any(name in schema for name in elsewhere):
        further = schema.pop("unevaluatedProperties")
        schema.setdefault("additionalProperties", further)


def _patterns(schema: dict[str, Any]) -> None:
    """Translate a pattern that is just the name of a property into another schema of that property.

    llguidance fails where a name occurs in both.
    """
    named, patterns = schema.get("properties"), schema.get("patternProperties")
    if not isinstance(named, dict) or not isinstance(patterns, dict):
        return
    for pattern in list(patterns):
        name = pattern.removeprefix("^").removesuffix("$")
        if name in named and pattern == f"^{name}$" and _PLAIN_NAME.fullmatch(name):
            schema["properties"] = {**schema["properties"], name: {"allOf": [named[name], patterns[pattern]]}}
            schema["patternProperties"] = {key: inner for key, inner in patterns.items() if key != pattern}
            patterns = schema["patternProperties"]
    if not patterns:
        del schema["patternProperties"]


_REWRITES: tuple[Callable[[dict[str, Any]], None], ...] = (
    _types,
    _bounds,
    _items,
    _required,
    _formats,
    _options,
    _further,
    _patterns,
)
