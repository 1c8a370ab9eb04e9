"""What commands that print answers share: the system prompt, text as it was typed, a line about an answer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shardhub.errors import PromptError

if TYPE_CHECKING:
    from shardhub.usecases.answer import Usage


def system_messages(system: str | None) -> list[dict[str, str]]:
    """The system prompt as the first message, if there is one."""
    return [{"role": "system", "content": typed_text(system)}] if system else []


def summary(usage: Usage) -> str:
    """One line about an answer."""
    reused = f" ({usage.num_reused} of them reused)" if usage.num_reused else ""
    drafts = f", {usage.num_accepted} of {usage.num_drafted} guesses right" if usage.num_drafted else ""
    losses = f", went on after {usage.num_recoveries} loss" if usage.num_recoveries else ""
    losses += "es" if usage.num_recoveries > 1 else ""
    losses += "" if usage.is_exact else " (not bit-exact)"
    return (
        f"{usage.num_prompt} prompt tokens{reused}, {usage.num_generated} generated, "
        f"first after {usage.first_token_s:.2f} s, then {usage.tokens_per_s:.1f} tokens/s{drafts}{losses}"
    )


def typed_text(text: str) -> str:
    """Text of an option as it was typed: terminals send UTF-8 also where the locale names another encoding.

    Raises:
        PromptError: It is not UTF-8.
    """
    try:
        return os.fsencode(text).decode("utf-8") if any(map(_is_surrogate, text)) else text
    except UnicodeError as error:
        raise PromptError("An option's text is not UTF-8.", why=f"{error}.") from error


def _is_surrogate(character: str) -> bool:
    return 0xD800 <= ord(character) <= 0xDFFF
