"""Where a prompt ends: before a new answer, or inside an answer that the client began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shardhub.gateway.refusals import Refusal
from shardhub.text.template import Ending

CONTINUE = "continue_final_message"
PROMPT = "add_generation_prompt"


def ending_of(fields: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> Ending:
    """Determine where the prompt of a conversation ends.

    Args:
        fields: A request's `continue_final_message` and `add_generation_prompt`; None means the default.
        messages: As `messages_of` makes them.

    Raises:
        Refusal: The fields contradict each other, or there is nothing to continue.

    Source: vllm/entrypoints/openai/chat_completion/protocol.py, check_generation_prompt.
    """
    if not fields.get(CONTINUE):
        return "history" if fields.get(PROMPT) is False else "turn"
    if fields.get(PROMPT):
        raise Refusal(400, f"{CONTINUE} and {PROMPT} cannot both be true.", param=CONTINUE)
    if not continues_well(messages):
        raise Refusal(400, f"{CONTINUE} needs an assistant message with text as the last message.", param=CONTINUE)
    return "prefix"


def continues_well(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last message is an answer that can be continued: it has text and no calls."""
    last = messages[-1] if messages else {}
    content = last.get("content")
    if isinstance(content, list):
        texts = (part.get("text") if isinstance(part, dict) else part for part in content)
        content = "".join(text for text in texts if isinstance(text, str))
    return last.get("role") == "assistant" and bool(str(content or "").strip()) and not last.get("tool_calls")
