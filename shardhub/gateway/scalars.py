"""Lenient numbers and flags: 20.0 and "20" are read as 20, 1 as true.

vLLM and OpenAI accept these forms, so clients send them. Values without meaning in a field, such as `true` for a
number, are still refused.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

# Maximum digits of a number in quotes. A float in full precision has 17 and an exponent.
_NUMBER = re.compile(r"\s*[+-]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][+-]?\d{1,3})?\s*")
# Source: pydantic's conversion table, of a text to a bool.
_FLAGS = dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True)
_FLAGS |= dict.fromkeys(("false", "f", "no", "n", "off", "0"), False)


def whole(value: Any) -> Any:
    """Convert a value that represents an integer to int; return any other value unchanged."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = int(value) if value.strip().lstrip("+-").isdigit() else float(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def real(value: Any) -> Any:
    """Convert a text that represents a number to float; return any other value unchanged."""
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def flag(value: Any) -> Any:
    """Convert a value that represents a flag to bool; return any other value unchanged."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower(), value)
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else value


Whole = Annotated[int, BeforeValidator(whole)]
Real = Annotated[float, BeforeValidator(real)]
Flag = Annotated[bool, BeforeValidator(flag)]
