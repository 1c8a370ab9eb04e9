"""POST /v1/messages and /v1/messages/count_tokens: the stateless part of Anthropic's API."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from shardhub.gateway.blocks import steps_of
from shardhub.gateway.endings import continues_well
from shardhub.gateway.events import RESPONSES, EventStream, encoded
from shardhub.gateway.message_blocks import MessageWriter, failure
from shardhub.gateway.message_history import chat_messages, instructions
from shardhub.gateway.message_tools import MessageTools, choice_of
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.scalars import Whole
from shardhub.gateway.schema import MAX_MESSAGES, MAX_TOOLS, Body, ChatRequest, Sampling, Stop
from shardhub.gateway.served_models import service_of
from shardhub.gateway.service import Service, tenant_of, unless_gone, warnings_of
from shardhub.gateway.strict import StrictRoute
from shardhub.gateway.turn import Turn, chat_request, num_prompt, understand
from shardhub.text.stops import MAX_STOPS

router = APIRouter(tags=["messages"], route_class=StrictRoute)

# Errors of the chat request are reported under this API's field names.
_NAMES = {"stop": "stop_sequences", "response_format": "output_config"}
# Keep-alive: clients of this API expect events and do not count comments.
_PING = '\nevent: ping\ndata: {"type":"ping"}'


class AnthropicMessage(Body):
    """One message of a conversation."""

    role: str
    content: str | list[str | dict[str, Any]] | None


class OutputConfig(Body):
    """The format of the answer and the reasoning effort."""

    effort: str | None = Field(None, max_length=32)
    format: dict[str, Any] | None = None


class CountRequest(Sampling):
    """POST /v1/messages/count_tokens."""

    messages: list[AnthropicMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[Stop] | None = Field(None, max_length=MAX_STOPS)
    tools: list[dict[str, Any]] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: dict[str, Any] | str | None = None
    thinking: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None
    # Accepted, and without effect here.
    cache_control: Any = None
    container: Any = None
    context_management: Any = None


class MessagesRequest(CountRequest):
    """POST /v1/messages."""

    max_tokens: Whole = Field(ge=1, lt=2**31)


@router.post("/v1/messages", summary="Answer a conversation, as content blocks", responses=RESPONSES)
async def messages(body: MessagesRequest, request: Request) -> Response:
    """Answer a conversation, as one message or as server-sent events."""
    service = service_of(request, body.model)
    service.admission.check()
    try:
        chat, left_out = chat_of(body, max_tokens=body.max_tokens)
        turn = await unless_gone(request, understand(service, chat, tenant_of(request)))
    except Refusal as refusal:
        raise refusal.renamed(_NAMES) from refusal
    writer = MessageWriter(len(turn.ask.prompt), model=service.reported_name(body.model), requested=body.max_tokens)
    headers = warnings_of(body, left_out, remarks=turn.remarks)
    if body.stream:
        return EventStream(
            _stream(service, turn, writer),
            comment=lambda: turn.comment() + _PING,
            failure=failure,
            keepalive_s=service.settings.keepalive_s,
            headers=headers,
        )
    content = encoded(await unless_gone(request, _whole(service, turn, writer)))
    return Response(content, media_type="application/json", headers=headers)


@router.post("/v1/messages/count_tokens", summary="Count a conversation's tokens")
async def count_tokens(body: CountRequest, request: Request) -> dict[str, int]:
    """Count the tokens of a prompt under the chat template, its tools included."""
    service = service_of(request, body.model)
    try:
        chat, _ = chat_of(body)
        return {"input_tokens": await unless_gone(request, num_prompt(service, chat))}
    except Refusal as refusal:
        raise refusal.renamed(_NAMES) from refusal


@router.api_route("/v1/messages/batches", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/v1/messages/batches/{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
async def batches(request: Request) -> None:
    """Refuse batches, which would have to be stored for hours."""
    raise Refusal(404, "Message batches are not served here; send each message to /v1/messages.")


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
    """Convert a request to a chat request, and list what was left out. A final assistant message is continued.

    Raises:
        Refusal: The request is malformed.
    """
    tools = MessageTools()
    tools.add(body.tools or (), "tools")
    messages = [{"role": "system", "content": instructions(body.system, "system")}] if body.system else []
    for index, message in enumerate(body.messages):
        messages += chat_messages(message.role, message.content, f"messages[{index}].content", tools)
    thinking = body.thinking or {}
    left_out = list(tools.left_out)
    if thinking.get("budget_tokens") is not None:
        left_out.append("thinking.budget_tokens")
    output = body.output_config
    form = (output.format if output else None) or body.output_format
    choice = body.tool_choice
    alone = isinstance(choice, dict) and choice.get("disable_parallel_tool_use") is True
    sampling = {name: getattr(body, name) for name in Sampling.model_fields}
    joined = _joined(messages)
    chat = chat_request(
        **{**sampling, "stop": body.stop if body.stop_sequences is None else body.stop_sequences},
        messages=joined,
        continue_final_message=continues_well(joined),
        max_tokens=max_tokens,
        tools=list(tools.functions.values()) or None,
        tool_choice=choice_of(choice),
        parallel_tool_calls=False if alone else None,
        response_format=_format(form),
        reasoning_effort=output.effort if output else None,
        chat_template_kwargs=None if body.thinking is None else {"enable_thinking": thinking.get("type") != "disabled"},
    )
    return chat, left_out


def _joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join consecutive messages of one role, as this API does."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        before = joined[-1] if joined else None
        texts = before is not None and isinstance(before["content"], str) and isinstance(message["content"], str)
        if (
            before is not None
            and texts
            and _is_plain(before)
            and _is_plain(message)
            and before["role"] == message["role"]
        ):
            before["content"] = f"{before['content']}\n{message['content']}"
        else:
            joined.append(message)
    return joined


def _is_plain(message: dict[str, Any]) -> bool:
    """Whether a message has only a role and a content."""
    return message.keys() == {"role", "content"}


def _format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    return given and {"type": given.get("type"), "json_schema": {"schema": given.get("schema")}}
