"""Numbers and flags as clients write them: 20.0 for 20, "20" for 20, 1 for true.

vLLM and OpenAI take these forms, and clients came to send them. What means nothing in a field, such as `true` for a
number, is refused all the same.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

# Digits of a number in quotes; those of a float that says all it can have 17, and an exponent.
_NUMBER = re.compile(r"\s*[+-]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][+-]?\d{1,3})?\s*")
# Source: pydantic's conversion table, of a text to a bool.
_FLAGS = dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True)
_FLAGS |= dict.fromkeys(("false", "f", "no", "n", "off", "0"), False)


def whole(value: Any) -> Any:
    """An integer where a value means one, else the value as it is."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = int(value) if value.strip().lstrip("+-").isdigit() else float(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def real(value: Any) -> Any:
    """A number where a value means one, else the value as it is."""
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def flag(value: Any) -> Any:
    """A flag where a value means one, else the value as it is."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower(), value)
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else value


Whole = Annotated[int, BeforeValidator(whole)]
Real = Annotated[float, BeforeValidator(real)]
Flag = Annotated[bool, BeforeValidator(flag)]
