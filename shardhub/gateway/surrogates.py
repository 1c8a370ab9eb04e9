"""Halves of characters in JSON: clients in JavaScript cut texts between them, and send such a text with every turn."""

from __future__ import annotations

import re

# An escape of either half that stands alone. After an escaped backslash it only looks like one.
_LONE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_ESCAPES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)
_REPLACEMENT = rb"\ufffd"


def without_lone_surrogates(body: bytes) -> bytes:
    """JSON with the replacement character in the place of each half of a character.

    Source: the WHATWG's Encoding Standard, which has browsers write such texts so.

    Args:
        body: In UTF-8.
    """
    if not _LONE.search(body):
        return body
    return _ESCAPES.sub(lambda match: _REPLACEMENT if match[1] else match[0], body)
