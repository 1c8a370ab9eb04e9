"""Reads clients' wishes about thinking from the fields of all APIs and passes them to the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardhub.gateway.schema import ChatRequest
from shardhub.gateway.thinking import Thinking, Value, Wish

# Names of the switch in public templates. A client that sets one this template does not read means the template's own.
_SWITCHES = ("enable_thinking", "thinking", "think", "enable_reasoning", "reasoning")

_IDLE = "the model's reasoning effort cannot be set: its chat template has no switch for it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Directed:
    """A conversation with the settings for thinking.

    Attributes:
        switches: The variables of the template.
        remark: A remark for the client if its wish has no effect; else empty.
    """

    messages: list[dict[str, Any]]
    switches: dict[str, Any]
    remark: str = ""


def wish_of(body: ChatRequest) -> Wish:
    """The wish in a request. A plain yes or no takes precedence over an effort.

    Fields: `reasoning_effort` (OpenAI), `thinking` (Anthropic; also in chats of DeepSeek and others), `reasoning`
    (OpenRouter), `think` (Ollama), `enable_thinking` (Qwen's servers).
    """
    thinks: bool | None = None
    effort = body.reasoning_effort
    for field in (body.enable_thinking, body.think, body.thinking, body.reasoning):
        flag, word = _read(field)
        thinks = flag if thinks is None else thinks
        effort = word if effort is None else effort
    return Wish(thinks=thinks, effort=effort)


def directed(
    thinking: Thinking,
    wish: Wish,
    messages: Sequence[Mapping[str, Any]],
    switches: Mapping[str, Any],
) -> Directed:
    """Apply a wish through the template's switches.

    Args:
        switches: Variables that the client set itself; they take precedence over the wish.
    """
    own = dict(switches)
    for name in _SWITCHES:
        if name in own and name not in thinking.names and isinstance(own[name], bool):
            wish = Wish(thinks=own.pop(name), effort=wish.effort)
    effort = wish.effort
    variables: dict[str, Value] = thinking.variables(wish)
    if effort and "reasoning_effort" in thinking.names and not thinking.efforts and not thinking.is_off(wish):
        variables.setdefault("reasoning_effort", effort)
    plain = [dict(message) for message in messages]
    is_soft = bool(thinking.soft_off) and thinking.off is None and thinking.is_off(wish)
    if is_soft:
        _add_word(plain, thinking.soft_off)
    is_idle = wish != Wish() and not variables and not is_soft
    return Directed(messages=plain, switches={**variables, **own}, remark=_IDLE if is_idle else "")


def _read(field: Any) -> tuple[bool | None, str | None]:
    """The yes or no, and the effort, in one field of any form."""
    if isinstance(field, bool):
        return field, None
    if isinstance(field, str):
        return None, field or None
    if not isinstance(field, dict):
        return None, None
    kind, effort = field.get("type"), field.get("effort")
    thinks = {"enabled": True, "adaptive": True, "disabled": False}.get(kind) if isinstance(kind, str) else None
    if thinks is None and isinstance(field.get("enabled"), bool):
        thinks = field["enabled"]
    return thinks, effort if isinstance(effort, str) and effort else None


def _add_word(messages: list[dict[str, Any]], word: str) -> None:
    """Add a word to the last message of the user."""
    for message in reversed(messages):
        if message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, list):
            message["content"] = [*content, {"type": "text", "text": word}]
        else:
            message["content"] = f"{content or ''}\n{word}"
        return
