"""Replaces lone surrogates in JSON: clients in JavaScript cut texts inside a pair and resend them with every turn."""

from __future__ import annotations

import re

# The escape of a lone surrogate. After an escaped backslash, the match is not an escape.
_LONE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_ESCAPES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)
_REPLACEMENT = rb"\ufffd"


def without_lone_surrogates(body: bytes) -> bytes:
    """Replace each lone surrogate in JSON by the replacement character.

    Source: the WHATWG's Encoding Standard, by which browsers encode such texts.

    Args:
        body: JSON in UTF-8.
    """
    if not _LONE.search(body):
        return body
    return _ESCAPES.sub(lambda match: _REPLACEMENT if match[1] else match[0], body)
