"""Converts a call's arguments to the types of the tool's schema, where that loses nothing."""

from __future__ import annotations

import json
from typing import Any

from shardhub.gateway.calls.values import number_of, read_value

# Maximum depth of nested references and alternatives.
_MAX_DEPTH = 32
_ALL = frozenset(("null", "boolean", "integer", "number", "string", "array", "object"))
# Other notations' names of JSON's types.
_ALIASES = {
    "str": "string",
    "text": "string",
    "varchar": "string",
    "char": "string",
    "int": "integer",
    "long": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
    "dict": "object",
    "list": "array",
    "tuple": "array",
    "arr": "array",
    "none": "null",
}
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def typed_arguments(arguments: dict[str, Any], parameters: Any, *, as_text: bool) -> dict[str, Any]:
    """Convert the arguments of a call, each to a type that the schema of its property allows.

    A text that cannot be converted stays as it is.

    Args:
        parameters: The schema of the tool's arguments.
        as_text: Whether the format writes all values as text, so that a text may stand for a value of any type.
    """
    typed = _Types(parameters, as_text=as_text).value(arguments, parameters, 0)
    assert isinstance(typed, dict)
    return typed


def json_text(value: Any) -> str:
    """A value as JSON. Characters are not escaped, unless the text has some that UTF-8 cannot encode."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


class _Types:
    def __init__(self, root: Any, *, as_text: bool) -> None:
        self._root = root
        self._as_text = as_text

    def value(self, value: Any, schema: Any, depth: int) -> Any:
        """Convert a value to the schema's type."""
        if depth > _MAX_DEPTH:
            return value
        types = self._allowed(schema, 0)
        if isinstance(value, str):
            typed = self._of_text(value, schema, types)
            return typed if isinstance(typed, str) else self._inside(typed, schema, depth)
        if types <= {"string", "null"} and value is not None and not isinstance(value, float):
            return json_text(value)  # a number, or an object that is to be a file's content
        if isinstance(value, float) and value.is_integer() and "integer" in types and "number" not in types:
            return int(value)
        return self._inside(value, schema, depth)

    def _inside(self, value: Any, schema: Any, depth: int) -> Any:
        if isinstance(value, dict):
            # Values inside a text of JSON have their own types.
            inner = self if depth == 0 or not self._as_text else _Types(self._root, as_text=False)
            return {name: inner.value(item, self._property(schema, name, 0), depth + 1) for name, item in value.items()}
        if isinstance(value, list):
            items = self._child(schema, "items", 0)
            return [_Types(self._root, as_text=False).value(item, items, depth + 1) for item in value]
        return value

    def _of_text(self, text: str, schema: Any, types: frozenset[str]) -> Any:
        if types == {"string"} or text in self._literals(schema, 0):
            return text
        if types >= _ALL:
            return _container(text, _ALL) if self._as_text else text
        plain = text.strip()
        may_be_text = "string" in types
        if plain.lower() in ("null", "none") and ("null" in types or not may_be_text):
            return None
        if may_be_text and not self._as_text:
            return text
        if types & {"integer", "number"}:
            try:
                number = number_of(plain)
            except ValueError:
                pass
            else:
                if isinstance(number, float) and number.is_integer() and "number" not in types:
                    number = int(number)
                if ("number" in types or isinstance(number, int)) and (not may_be_text or json.dumps(number) == plain):
                    return number
        if "boolean" in types:
            only = types <= {"boolean", "null"}
            for words, value in ((_YES, True), (_NO, False)):
                if plain.lower() in (words if only else words[:1]):
                    return value
        return _container(text, types)

    def _allowed(self, schema: Any, depth: int) -> frozenset[str]:
        """The types that a schema allows."""
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return _ALL
        types = _ALL
        if "$ref" in schema:
            types = self._allowed(self._pointed(schema["$ref"]), depth + 1)
        declared = schema.get("type")
        if declared is not None:
            names = declared if isinstance(declared, list) else [declared]
            plain = {_ALIASES.get(str(name).lower(), str(name).lower()) for name in names}
            types &= frozenset(plain) if plain <= _ALL else _ALL
        elif "properties" in schema:
            types &= {"object"}
        for name in ("const", "enum"):
            if name in schema:
                options = [schema[name]] if name == "const" else schema[name]
                types &= frozenset(map(_type_of, options)) if isinstance(options, list) else _ALL
        for name in ("anyOf", "oneOf"):
            if isinstance(schema.get(name), list) and schema[name]:
                types &= frozenset().union(*(self._allowed(option, depth + 1) for option in schema[name]))
        for option in _options(schema, "allOf"):
            types &= self._allowed(option, depth + 1)
        if schema.get("nullable") is True:
            types |= {"null"}
        return types or _ALL

    def _literals(self, schema: Any, depth: int) -> list[Any]:
        """The values that a schema lists."""
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return []
        values = list(schema["enum"]) if isinstance(schema.get("enum"), list) else []
        for option in _options(schema, "anyOf", "oneOf", "allOf"):
            values += self._literals(option, depth + 1)
        if "$ref" in schema:
            values += self._literals(self._pointed(schema["$ref"]), depth + 1)
        return [*values, schema["const"]] if "const" in schema else values

    def _property(self, schema: Any, name: str, depth: int) -> Any:
        properties = self._child(schema, "properties", depth, having=name)
        if isinstance(properties, dict) and name in properties:
            return properties[name]
        return self._child(schema, "additionalProperties", depth)

    def _child(self, schema: Any, keyword: str, depth: int, *, having: str | None = None) -> Any:
        """The value of a keyword in a schema or in one that it refers to."""
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return None
        child = schema.get(keyword)
        if isinstance(child, dict) and (having is None or having in child):
            return child
        options = [self._pointed(schema["$ref"])] if "$ref" in schema else []
        for option in (*options, *_options(schema, "anyOf", "oneOf", "allOf")):
            child = self._child(option, keyword, depth + 1, having=having)
            if isinstance(child, dict):
                return child
        return None

    def _pointed(self, reference: Any) -> Any:
        """The schema at a JSON pointer into the tool's schema."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        place = self._root
        for part in reference[1:].split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            place = place.get(name) if isinstance(place, dict) else None
        return place


def _options(schema: dict[str, Any], *keywords: str) -> list[Any]:
    """All schemas in the lists under the given keywords."""
    return [option for keyword in keywords if isinstance(schema.get(keyword), list) for option in schema[keyword]]


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    names = {int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "string")


def _container(text: str, types: frozenset[str]) -> Any:
    """The list or object that a text encodes, if its type is allowed; else the text."""
    if text.strip()[:1] not in ("{", "["):
        return text
    try:
        value, end = read_value(text)
    except ValueError:
        return text
    kind = "object" if isinstance(value, dict) else "array"
    return value if not text[end:].strip() and kind in types else text
