"""Converts requests of Ollama's API to chat and completion requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shardhub.gateway.endings import continues_well
from shardhub.gateway.ollama_schema import OllamaChat, OllamaGenerate, OllamaMessage, OllamaRequest, Options
from shardhub.gateway.schema import ChatRequest, CompletionRequest
from shardhub.gateway.turn import chat_request

# Errors of the converted request are reported under this API's field names.
NAMES = {
    "max_tokens": "options.num_predict",
    "repeat_penalty": "options.repeat_penalty",
    "repeat_last_n": "options.repeat_last_n",
    "presence_penalty": "options.presence_penalty",
    "frequency_penalty": "options.frequency_penalty",
    "temperature": "options.temperature",
    "top_k": "options.top_k",
    "top_p": "options.top_p",
    "min_p": "options.min_p",
    "seed": "options.seed",
    "stop": "options.stop",
    "response_format": "format",
    "chat_template_kwargs": "think",
    "reasoning_effort": "think",
}


def chat_of(body: OllamaChat) -> ChatRequest:
    """Convert a conversation to a chat request.

    Raises:
        Refusal: A field is invalid.
    """
    return _request(body, _messages(body.messages or []), tools=body.tools or None)


def text_chat_of(body: OllamaGenerate) -> ChatRequest:
    """Convert a prompt to a chat request of one message.

    Raises:
        Refusal: A field is invalid.
    """
    system = [{"role": "system", "content": body.system}] if body.system else []
    return _request(body, [*system, {"role": "user", "content": _content(body.prompt or "", body.images)}])


def completion_of(body: OllamaGenerate) -> CompletionRequest:
    """Convert a raw prompt, and a suffix if there is one, to a completion request.

    Raises:
        ValidationError: A field is invalid.
    """
    structured = {"json": {"type": "object"} if body.format == "json" else body.format} if body.format else None
    return CompletionRequest(
        prompt=body.prompt or "",
        suffix=body.suffix or None,
        structured_outputs=structured,  # type: ignore[arg-type]
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        **(body.options or Options.model_validate({})).sampling(),
    )


def _request(body: OllamaRequest, messages: list[dict[str, Any]], **more: Any) -> ChatRequest:
    return chat_request(
        **(body.options or Options.model_validate({})).sampling(),
        **_thinking(body.think),
        **more,
        messages=messages,
        # As in Ollama, whose templates leave the last message open.
        continue_final_message=continues_well(messages),
        stream=body.is_streamed,
        response_format=_format(body.format),
        logprobs=body.logprobs,
        top_logprobs=body.top_logprobs,
    )


def _thinking(think: bool | str | None) -> dict[str, Any]:
    """The fields of a chat request for `think`."""
    if think is True:
        return {"chat_template_kwargs": {"enable_thinking": True}}
    if think is False:
        return {"reasoning_effort": "none"}
    return {"reasoning_effort": think} if think else {}


def _format(form: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if not form:
        return None
    if isinstance(form, str):
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "format", "schema": form}}


def _messages(messages: Sequence[OllamaMessage]) -> list[dict[str, Any]]:
    """Convert messages. Calls get ids; a result gets the id of its call, matched by name or else by order."""
    plain: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []  # ids and names of calls without a result
    for index, message in enumerate(messages):
        fields: dict[str, Any] = {"role": message.role, "content": _content(message.content, message.images)}
        if message.thinking:
            fields["reasoning_content"] = message.thinking
        if message.tool_calls:
            fields["tool_calls"] = []
            for at, call in enumerate(message.tool_calls):
                call_id = call.id or f"call_{index}_{at}"
                function = {"name": call.function.name, "arguments": call.function.arguments}
                fields["tool_calls"].append({"id": call_id, "type": "function", "function": function})
                open_calls.append((call_id, call.function.name))
        if message.role == "tool":
            name = message.tool_name or message.name
            known = next((each for each in open_calls if name in (None, each[1])), None)
            if known is not None:
                open_calls.remove(known)
            fields["tool_call_id"] = message.tool_call_id or (known[0] if known else f"call_{index}")
            if name or known:
                fields["name"] = name or (known[1] if known else None)
        plain.append(fields)
    return plain


def _content(text: str | list[Any] | None, images: Sequence[Any] | None) -> str | list[Any] | None:
    """A message's content as a chat's: a text alone, or parts for the text and the images."""
    if not images:
        return text
    parts: list[Any] = text if isinstance(text, list) else [{"type": "text", "text": text or ""}]
    urls = (f"data:image/png;base64,{image}" for image in images)
    return [*parts, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]
