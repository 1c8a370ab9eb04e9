"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API, as far as it needs nothing stored."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from shardhub.gateway.blocks import steps_of
from shardhub.gateway.conversations import text_of
from shardhub.gateway.events import RESPONSES, EventStream, encoded
from shardhub.gateway.message_blocks import MessageWriter, failure
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.schema import MAX_MESSAGES, MAX_TOOLS, Body, ChatRequest, Sampling, Stop
from shardhub.gateway.service import Service, service_of, tenant_of, unless_gone, warnings_of
from shardhub.gateway.strict import StrictRoute
from shardhub.gateway.turn import Turn, chat_request, num_prompt, understand
from shardhub.text.stops import MAX_STOPS

router = APIRouter(tags=["messages"], route_class=StrictRoute)

# What is wrong with the chat request is told in the words of this API.
_NAMES = {"stop": "stop_sequences", "response_format": "output_config"}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class AnthropicMessage(Body):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class OutputConfig(Body):
    """What the answer must be, and how hard to think."""

    effort: str | None = Field(None, max_length=32)
    format: dict[str, Any] | None = None


class CountRequest(Sampling):
    """POST /v1/messages/count_tokens."""

    messages: list[AnthropicMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[Stop] | None = Field(None, max_length=MAX_STOPS)
    tools: list[dict[str, Any]] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    # Taken, and without effect here.
    cache_control: Any = None
    container: Any = None
    context_management: Any = None


class MessagesRequest(CountRequest):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1, lt=2**31)


@router.post("/v1/messages", summary="Answer a conversation, as blocks", responses=RESPONSES)
async def messages(body: MessagesRequest, request: Request) -> Response:
    """Answer a conversation, whole or as server-sent events."""
    service = service_of(request)
    service.admission.check()
    model = service.check_model(body.model)
    try:
        chat, left_out = chat_of(body, max_tokens=body.max_tokens)
        # The number is required here, and clients send the most that models of another kind can say.
        turn = await unless_gone(request, understand(service, chat, tenant_of(request), cut=True))
    except Refusal as refusal:
        raise refusal.renamed(_NAMES) from refusal
    writer = MessageWriter(len(turn.ask.prompt), model=model)
    headers = warnings_of(body, left_out)
    if body.stream:
        return EventStream(
            _stream(service, turn, writer),
            comment=turn.comment,
            failure=failure,
            keepalive_s=service.settings.keepalive_s,
            stall_s=service.settings.stall_s,
            headers=headers,
        )
    content = encoded(await unless_gone(request, _whole(service, turn, writer)))
    return Response(content, media_type="application/json", headers=headers)


@router.post("/v1/messages/count_tokens", summary="Tokens of a conversation")
async def count_tokens(body: CountRequest, request: Request) -> dict[str, int]:
    """Tokens of a prompt, under the chat template and with its tools."""
    service = service_of(request)
    service.check_model(body.model)
    try:
        chat, _ = chat_of(body)
        return {"input_tokens": await unless_gone(request, num_prompt(service, chat))}
    except Refusal as refusal:
        raise refusal.renamed(_NAMES) from refusal


async def _stream(service: Service, turn: Turn, writer: MessageWriter) -> AsyncGenerator[bytes, None]:
    with service.admission.enter():
        answer = turn.begin()
        try:
            async for step in steps_of(answer):
                yield writer.step(step, answer)
        finally:
            answer.cancel()
        yield writer.end(answer)


async def _whole(service: Service, turn: Turn, writer: MessageWriter) -> dict[str, Any]:
    with service.admission.enter():
        answer = turn.begin()
        try:
            async for step in steps_of(answer):
                writer.step(step, answer)
        finally:
            answer.cancel()
    return writer.ended(answer)


def chat_of(body: CountRequest, *, max_tokens: int | None = None) -> tuple[ChatRequest, list[str]]:
    """A request as one for a chat, and what of it was left out.

    Raises:
        Refusal: It is malformed, or holds more than text.
    """
    found = [{"role": "system", "content": _text(body.system, "system")}] if body.system else []
    for index, message in enumerate(body.messages):
        found += _messages(message, f"messages[{index}].content")
    given = body.tools or []
    own = [tool for tool in given if tool.get("type", "custom") == "custom"]
    left_out = [f"tools.{tool['type']}" for tool in given if tool.get("type", "custom") != "custom"]
    switches = {} if body.thinking is None else {"enable_thinking": body.thinking.get("type") != "disabled"}
    output = body.output_config
    sampling = {name: getattr(body, name) for name in Sampling.model_fields}
    chat = chat_request(
        **{**sampling, "stop": body.stop if body.stop_sequences is None else body.stop_sequences},
        messages=_joined(found),
        max_tokens=max_tokens,
        tools=[{"type": "function", "function": _function(tool)} for tool in own] or None,
        tool_choice=_choice(body.tool_choice),
        response_format=_format(output.format) if output else None,
        reasoning_effort=output.effort if output else None,
        chat_template_kwargs=switches or None,
    )
    return chat, left_out


def _messages(message: AnthropicMessage, where: str) -> list[dict[str, Any]]:
    """A message as messages of a chat: results of tools stand for themselves there."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    found: list[dict[str, Any]] = []
    plain: dict[str, Any] = {"role": message.role, "content": ""}
    calls: list[dict[str, Any]] = []
    for at, block in enumerate(message.content):
        place = f"{where}[{at}]"
        kind = block.get("type")
        if kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input")}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            result = _text(block.get("content") or "", f"{place}.content")
            found.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": result})
        elif kind == "thinking":
            plain["reasoning_content"] = plain.get("reasoning_content", "") + str(block.get("thinking") or "")
        elif kind != "redacted_thinking":
            plain["content"] += text_of(block, place)
    if calls:
        plain["tool_calls"] = calls
    return [*found, plain] if plain["content"] or calls or not found else found


def _joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of one side that follow each other are one, as templates want turns to alternate."""
    found: list[dict[str, Any]] = []
    for message in messages:
        before = found[-1] if found else None
        if before is None or before.keys() | message.keys() != {"role", "content"} or before["role"] != message["role"]:
            found.append(message)
        else:
            before["content"] = f"{before['content']}\n{message['content']}"
    return found


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise Refusal(400, f"{where} must be a text, or a list of blocks.", param=where)
    return "\n".join(text_of(block, f"{where}[{at}]") for at, block in enumerate(content))


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: tool[name] for name in ("name", "description") if name in tool}
    return {**found, "parameters": tool.get("input_schema")}


def _choice(given: dict[str, Any] | None) -> str | dict[str, Any] | None:
    if given is None:
        return None
    kind = given.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": given.get("name")}}
    if kind not in _CHOICES:
        raise Refusal(400, "tool_choice must be of type auto, any, tool or none.", param="tool_choice")
    return _CHOICES[kind]


def _format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    return given and {"type": given.get("type"), "json_schema": {"schema": given.get("schema")}}
