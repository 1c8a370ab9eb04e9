"""POST /v1/responses: OpenAI's newer API, as far as it needs nothing stored: each request brings its whole history."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from shardhub.gateway.blocks import steps_of
from shardhub.gateway.conversations import text_of
from shardhub.gateway.events import RESPONSES, EventStream, encoded
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.response_items import ResponseWriter
from shardhub.gateway.schema import MAX_MESSAGES, MAX_TOOLS, Body, ChatRequest, Sampling
from shardhub.gateway.service import Service, service_of, tenant_of, unless_gone, warnings_of
from shardhub.gateway.strict import StrictRoute
from shardhub.gateway.turn import Turn, chat_request, understand

router = APIRouter(tags=["responses"], route_class=StrictRoute)

# What is wrong with the chat request is told in the words of this API.
_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}


class TextConfig(Body):
    """What the text must be."""

    format: dict[str, Any] | None = None
    verbosity: Any = None


class ReasoningConfig(Body):
    """How the model is to reason."""

    effort: str | None = Field(None, max_length=32)
    summary: Any = None


class ResponsesRequest(Sampling):
    """POST /v1/responses."""

    input: str | list[dict[str, Any]] = Field(max_length=16 << 20)
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, lt=2**31)
    tools: list[dict[str, Any]] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: str | dict[str, Any] | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Nothing is stored.
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    # Taken, and without effect here.
    include: Any = None
    truncation: Any = None
    parallel_tool_calls: Any = None
    max_tool_calls: Any = None
    stream_options: Any = None
    prompt_cache_retention: Any = None


@router.post("/v1/responses", summary="Answer a conversation, as items", responses=RESPONSES)
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """Answer a conversation, whole or as server-sent events."""
    service = service_of(request)
    service.admission.check()
    model = service.check_model(body.model)
    try:
        chat, left_out = chat_of(body)
        turn = await unless_gone(request, understand(service, chat, tenant_of(request)))
    except Refusal as refusal:
        raise refusal.renamed(_NAMES) from refusal
    writer = ResponseWriter(turn, body.model_dump(), model=model)
    headers = warnings_of(body, left_out)
    if body.stream:
        return EventStream(
            _stream(service, turn, writer),
            comment=turn.comment,
            failure=writer.failure,
            keepalive_s=service.settings.keepalive_s,
            stall_s=service.settings.stall_s,
            headers=headers,
        )
    content = encoded(await unless_gone(request, _whole(service, turn, writer)))
    return Response(content, media_type="application/json", headers=headers)


async def _stream(service: Service, turn: Turn, writer: ResponseWriter) -> AsyncGenerator[bytes, None]:
    with service.admission.enter():
        answer = turn.begin()
        try:
            async for step in steps_of(answer):
                yield writer.step(step, answer)
        finally:
            answer.cancel()
        yield writer.end(answer)


async def _whole(service: Service, turn: Turn, writer: ResponseWriter) -> dict[str, Any]:
    with service.admission.enter():
        answer = turn.begin()
        try:
            async for step in steps_of(answer):
                writer.step(step, answer)
        finally:
            answer.cancel()
    return writer.ended(answer)


def chat_of(body: ResponsesRequest) -> tuple[ChatRequest, list[str]]:
    """A request as one for a chat, and what of it was left out.

    Raises:
        Refusal: It needs something that was stored, or is malformed.
    """
    for name in ("previous_response_id", "conversation", "background"):
        if getattr(body, name):
            raise Refusal(400, f"{name}: nothing is stored here; send the whole input.", param=name)
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    if not items or len(items) > MAX_MESSAGES:
        raise Refusal(400, f"input must have 1 to {MAX_MESSAGES} items, not {len(items)}.", param="input")
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    tools, left_out = _tools(body.tools or [])
    chosen = body.tool_choice
    if isinstance(chosen, dict):
        chosen = _choice(chosen)
    chat = chat_request(
        **{name: getattr(body, name) for name in Sampling.model_fields},
        messages=messages + _messages(items),
        max_tokens=body.max_output_tokens,
        tools=tools or None,
        tool_choice=chosen,
        response_format=_format(body.text.format if body.text else None),
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
        chat_template_kwargs=body.chat_template_kwargs,
    )
    return chat, left_out


def _messages(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of a chat: calls go to the message before them, reasoning to the one that follows."""
    found: list[dict[str, Any]] = []
    reasoning = ""
    for index, item in enumerate(items):
        where = f"input[{index}]"
        kind = item.get("type", "message")
        message: dict[str, Any]
        if kind == "message":
            message = {"role": item.get("role"), "content": _content(item.get("content"), f"{where}.content")}
        elif kind == "function_call":
            if not isinstance(item.get("name"), str):
                raise Refusal(400, "A call must have a name.", param=where)
            call = {"name": item.get("name"), "arguments": item.get("arguments")}
            called = {"id": item.get("call_id"), "type": "function", "function": call}
            if found and found[-1]["role"] == "assistant":
                found[-1].setdefault("tool_calls", []).append(called)
                continue
            message = {"role": "assistant", "content": None, "tool_calls": [called]}
        elif kind == "function_call_output":
            output = _content(item.get("output"), f"{where}.output")
            message = {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
        elif kind == "reasoning":
            reasoning += _content(item.get("content") or [], f"{where}.content")
            continue
        else:
            raise Refusal(400, f"An item of type {str(kind)[:40]!r} cannot be read here.", param=where)
        if message["role"] == "assistant" and reasoning:
            message["reasoning_content"] = reasoning
        reasoning = ""
        found.append(message)
    return found


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Refusal(400, f"{where} must be a text, or a list of parts.", param=where)
    return "".join(text_of(part, f"{where}[{at}]") for at, part in enumerate(content))


def _tools(given: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Functions; tools that OpenAI itself would run are left out."""
    functions = [tool for tool in given if tool.get("type", "function") == "function"]
    left_out = [f"tools.{tool['type']}" for tool in given if tool.get("type", "function") != "function"]
    return [{"type": "function", "function": _function(tool)} for tool in functions], left_out


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    return {name: tool[name] for name in ("name", "description", "parameters", "strict") if name in tool}


def _choice(chosen: dict[str, Any]) -> dict[str, Any]:
    if chosen.get("type") != "function":
        raise Refusal(400, "tool_choice must be none, auto, required or a function.", param="tool_choice")
    return {"type": "function", "function": {"name": chosen.get("name")}}


def _format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    if given is None or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {"name": given.get("name"), "schema": given.get("schema")}}
