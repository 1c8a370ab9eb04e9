"""Chat templates, which render a conversation as the text that the model was trained on.

Templates come with models and are untrusted. They run sandboxed in a process of their own (`template_worker`), with
limits on time, memory and output. A legitimate template renders the same text as in transformers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from shardhub.errors import PromptError
from shardhub.text.calls import NULL
from shardhub.text.openings import Opened
from shardhub.text.sandbox import Sandbox

# The longest template among well-known models is about 30,000 characters.
MAX_TEMPLATE_CHARS = 1024**2
# Maximum bytes of a character in a JSON answer: a control character takes six.
_BYTES_PER_CHAR = 6
_ENVELOPE_BYTES = 65536
# Enough for the shape of a long history and the tools that some templates describe at length.
MAX_PROBE_CHARS = 1 << 20
# A message's reasoning is passed under each of these names. Source: transformers, `_alias_reasoning_fields`.
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")

Message = Mapping[str, Any]
Ending = Literal["history", "turn", "prefix"]

_RAW_HINT: Final = "Ask the publisher of the model to repair the template, or send the prompt without it (`raw`)."
_WHAT = {
    "raised": "The chat template refuses these messages.",
    "security": "The chat template tries something that is not allowed.",
    "syntax": "The chat template is not valid Jinja.",
    "undefined": "The chat template uses a value that is not defined.",
    "too big": "The chat template produces too much text or uses too much memory.",
    "too deep": "The chat template nests too deeply.",
    "encoding": "The messages contain characters that cannot be encoded.",
}


class ChatTemplate:
    """A chat template of a model.

    Args:
        source: The template's Jinja source.
        max_output_chars: Maximum length of a rendered text, for example 16 characters per position of the context.

    Attributes:
        source: The template's source.

    Raises:
        PromptError: The template is longer than `MAX_TEMPLATE_CHARS`.
    """

    def __init__(self, source: str, *, max_output_chars: int) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise PromptError(
                "The chat template is too long.",
                why=f"It has {len(source)} characters, and the limit is {MAX_TEMPLATE_CHARS}.",
            )
        self.source = source
        self._max_output_chars = max_output_chars
        self._sandbox = Sandbox()

    def start(self) -> None:
        """Start the rendering process now, so that the first `render` does not wait for it."""
        self._sandbox.start()

    def close(self) -> None:
        """End the rendering process."""
        self._sandbox.close()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """Render a conversation.

        Args:
            messages: Dicts with `role`, `content` and other fields that the template reads. Entries that are None are
                left out, as in transformers.
            add_generation_prompt: Whether the text ends with the opening of the model's answer.
            variables: Further variables of the template: `tools`, `documents`, special tokens, switches.

        Raises:
            PromptError: There are no messages, or the template refuses them (`why` is its message), fails, or exceeds
                its limits. The next call is not affected.
        """
        variables |= {"add_generation_prompt": add_generation_prompt}
        return _opened_of(self._exchanged("history", [messages], variables, self._max_output_chars)).text

    def open(self, forms: Sequence[Sequence[Message]], *, ending: Ending, variables: Mapping[str, Any]) -> Opened:
        """Render a conversation, and find the text with which the template opens the model's turn.

        See `shardhub.text.openings`.

        Args:
            forms: The conversation, followed by alternatives to try in this order if the template refuses it.
            ending: Where the text ends: where the model's turn begins ("turn"), inside the last message, which the
                model continues ("prefix"), or after the messages, without an opening ("history").
            variables: As in `render`.

        Raises:
            PromptError: As `render`, for the first form.
        """
        variables = {**variables, "add_generation_prompt": ending == "turn"}
        try:
            return _opened_of(self._exchanged(ending, forms[:1], variables, self._max_output_chars))
        except PromptError:
            # The other forms are as long as the first, so they are sent only when needed.
            if len(forms) == 1:
                raise
            with contextlib.suppress(PromptError):  # the error to report is that of the first form
                return _opened_of(self._exchanged(ending, forms[1:], variables, self._max_output_chars))
            raise

    def render_each(self, conversations: Sequence[Sequence[Message]], variables: Mapping[str, Any]) -> list[str | None]:
        """Render small conversations to observe which ones the template accepts. Null contents stay null.

        Returns:
            The texts; None for a refused conversation. Conversations for which no time was left are missing at the end.
        """
        try:
            variables = {"add_generation_prompt": True, **variables}
            line = self._exchanged("each", conversations, variables, MAX_PROBE_CHARS)
            answer = json.loads(line)
        except (PromptError, ValueError):
            return []  # too slow, too large or invalid: nothing was observed
        texts = answer.get("texts") if isinstance(answer, dict) else None
        if not isinstance(texts, list) or len(texts) > len(conversations):
            return []
        return [text if isinstance(text, str) else None for text in texts]

    def _exchanged(
        self, mode: str, conversations: Sequence[Sequence[Message]], variables: Mapping[str, Any], max_chars: int
    ) -> bytes:
        if not all(conversations):
            raise PromptError("The request has no messages to answer.", hint="Give at least one message.")
        request = {
            "template": self.source,
            "variables": {"tools": None, "documents": None, **variables},
            "conversations": [_prepared(messages) for messages in conversations],
            "max_chars": max_chars,
            "mode": mode,
        }
        try:
            line = json.dumps(request).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise PromptError("The messages are not plain JSON data.", why=str(error)) from error
        num_texts = len(conversations) if mode == "each" else 2
        return self._sandbox.ask(line, max_answer_bytes=num_texts * max_chars * _BYTES_PER_CHAR + _ENVELOPE_BYTES)


def _prepared(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Remove entries that are None and add reasoning under all names. Source: transformers, `apply_chat_template`.

    The message of a call keeps a content that is `NULL`, for templates that check for null.
    """
    prepared = []
    for message in messages:
        plain = {key: value for key, value in message.items() if value is not None}
        if plain.get("content") is NULL:
            plain["content"] = None
        reasoning = next((plain[name] for name in _REASONING_FIELDS if name in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        prepared.append(plain)
    return prepared


def _opened_of(line: bytes) -> Opened:
    """Parse the worker's answer. It is untrusted, because an untrusted template ran there."""
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise PromptError("The chat template's process sent an invalid answer.", hint=_RAW_HINT) from error
    text, opening = (answer.get("text"), answer.get("opening")) if isinstance(answer, dict) else (None, None)
    if isinstance(text, str) and isinstance(opening, str) and text.endswith(opening):
        return Opened(text=text, opening=opening)
    kind = str(answer.get("error")) if isinstance(answer, dict) else "failed"
    message = str(answer.get("message", "")) if isinstance(answer, dict) else ""
    # The message is printed on a terminal, so control characters are removed.
    why = "".join(char if char.isprintable() else " " for char in message)
    hint = "" if kind in ("raised", "encoding") else _RAW_HINT
    raise PromptError(_WHAT.get(kind, "The chat template fails."), why=why, hint=hint)
