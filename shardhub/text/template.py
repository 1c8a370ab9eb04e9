"""Chat templates: a conversation becomes the text the model was trained on.

Templates come with models, so from strangers: they run in a sandbox in a process of their own (`template_worker`),
with bounds on time, memory and output. What an honest one renders equals what transformers renders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from shardhub.errors import PromptError
from shardhub.text.openings import Opened
from shardhub.text.sandbox import Sandbox

# The longest template among well-known models is about 30,000 characters.
MAX_TEMPLATE_CHARS = 1024**2
# Bytes one character can take in a JSON answer: a control character becomes six.
_BYTES_PER_CHAR = 6
_ENVELOPE_BYTES = 65536
# A message's reasoning is passed under any of these. Source: transformers, `_alias_reasoning_fields`.
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")

Message = Mapping[str, Any]

_RAW_HINT: Final = "Ask the publisher of the model to repair the template, or send the prompt without it (--raw)."
_WHAT = {
    "raised": "The chat template refuses these messages.",
    "security": "The chat template is not allowed what it tries.",
    "syntax": "The chat template is not valid Jinja.",
    "undefined": "The chat template needs something that is not there.",
    "too big": "The chat template's text or memory is too big.",
    "too deep": "The chat template nests too deeply.",
    "encoding": "The messages hold characters that are not text.",
}


class ChatTemplate:
    """One template of one model.

    Args:
        source: Jinja text.
        max_output_chars: Longest text it may render: 16 characters for each position of the context, say.

    Raises:
        PromptError: The template is longer than `MAX_TEMPLATE_CHARS`.
    """

    def __init__(self, source: str, *, max_output_chars: int) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise PromptError(
                "The chat template is too long.", why=f"It has {len(source)} characters, at most {MAX_TEMPLATE_CHARS}."
            )
        self._source = source
        self._max_output_chars = max_output_chars
        self._sandbox = Sandbox()

    def start(self) -> None:
        """Start the process that renders now, so that the first `render` need not wait for it."""
        self._sandbox.start()

    def close(self) -> None:
        """End the process that renders."""
        self._sandbox.close()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """Render a conversation.

        Args:
            messages: Dicts with `role`, `content` and what else the template knows. Entries that are None are left
                out, as transformers does.
            add_generation_prompt: Whether the text ends where the model's answer begins.
            variables: What else the template may use: `tools`, `documents`, special tokens, switches.

        Raises:
            PromptError: There is no message, or the template refuses them (`why` is its own message), fails, or
                passes its bounds. The next call is not affected.
        """
        return self._ask("text", messages, variables | {"add_generation_prompt": add_generation_prompt}).text

    def open_turn(self, messages: Sequence[Message], **variables: Any) -> Opened:
        """Render a conversation up to where the model's answer begins; see `shardhub.text.openings.open_turn`.

        Raises:
            PromptError: As `render`.
        """
        return self._ask("open", messages, variables | {"add_generation_prompt": True})

    def continue_turn(self, messages: Sequence[Message], **variables: Any) -> Opened:
        """Render a conversation whose last message the model goes on with; see `shardhub.text.openings.continue_turn`.

        Raises:
            PromptError: As `render`.
        """
        return self._ask("continue", messages, variables | {"add_generation_prompt": False})

    def _ask(self, mode: str, messages: Sequence[Message], variables: dict[str, Any]) -> Opened:
        if not messages:
            raise PromptError("There is no message to answer.", hint="Give at least one.")
        everything = {"tools": None, "documents": None} | variables | {"messages": _prepared(messages)}
        request = {"template": self._source, "variables": everything, "max_chars": self._max_output_chars, "mode": mode}
        try:
            line = json.dumps(request).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise PromptError("The messages are not plain JSON data.", why=str(error)) from error
        max_bytes = self._max_output_chars * _BYTES_PER_CHAR + _ENVELOPE_BYTES
        return _opened_of(self._sandbox.ask(line, max_answer_bytes=2 * max_bytes))


def _prepared(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Leave out what is None and give reasoning under all its names. Source: transformers, `apply_chat_template`."""
    prepared = []
    for message in messages:
        plain = {key: value for key, value in message.items() if value is not None}
        reasoning = next((plain[name] for name in _REASONING_FIELDS if name in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        prepared.append(plain)
    return prepared


def _opened_of(line: bytes) -> Opened:
    """Take the worker's answer apart; nothing about it is trusted, as a stranger's template ran there."""
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise PromptError("The chat template's process answers nonsense.", hint=_RAW_HINT) from error
    text, opening = (answer.get("text"), answer.get("opening")) if isinstance(answer, dict) else (None, None)
    if isinstance(text, str) and isinstance(opening, str) and text.endswith(opening):
        return Opened(text=text, opening=opening)
    kind = str(answer.get("error")) if isinstance(answer, dict) else "failed"
    message = str(answer.get("message", "")) if isinstance(answer, dict) else ""
    # The message is printed on a terminal, whose control sequences are not the template's to use.
    why = "".join(char if char.isprintable() else " " for char in message)
    hint = "" if kind in ("raised", "encoding") else _RAW_HINT
    raise PromptError(_WHAT.get(kind, "The chat template fails."), why=why, hint=hint)
