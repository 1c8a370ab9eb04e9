"""Prompts as they were typed: the text of an option, and the system prompt."""

from __future__ import annotations

import os

from shardhub.errors import PromptError


def system_messages(system: str | None) -> list[dict[str, str]]:
    """The system prompt as the first message, if there is one."""
    return [{"role": "system", "content": typed_text(system)}] if system else []


def typed_text(text: str) -> str:
    """Decode an option's text as it was typed: terminals send UTF-8 even if the locale names another encoding.

    Raises:
        PromptError: The text is not UTF-8.
    """
    try:
        return os.fsencode(text).decode("utf-8") if any(map(_is_surrogate, text)) else text
    except UnicodeError as error:
        raise PromptError("The prompt or system prompt is not valid UTF-8.", why=f"{error}.") from error


def _is_surrogate(character: str) -> bool:
    return 0xD800 <= ord(character) <= 0xDFFF
