"""POST /v1/responses: OpenAI's Responses API. A request brings its whole history or refers to stored answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from shardhub.gateway.blocks import steps_of
from shardhub.gateway.events import RESPONSES, EventStream, encoded
from shardhub.gateway.refusals import Overflow, Refusal
from shardhub.gateway.response_history import history_of, referred_ids
from shardhub.gateway.response_items import ResponseWriter
from shardhub.gateway.response_store import ResponseStore
from shardhub.gateway.response_tools import Toolbox
from shardhub.gateway.scalars import Flag, Whole
from shardhub.gateway.schema import MAX_MESSAGES, MAX_TOOLS, Body, ChatRequest, Message, Sampling
from shardhub.gateway.served_models import models_of, service_of
from shardhub.gateway.service import Service, in_thread, tenant_of, unless_gone, warnings_of
from shardhub.gateway.strict import StrictRoute
from shardhub.gateway.turn import Turn, chat_request, num_prompt, understand

# Stores an answer for later requests, unless the request forbids it.
Keep = Callable[[dict[str, Any]], Awaitable[None]]

router = APIRouter(tags=["responses"], route_class=StrictRoute)

# Errors of the chat request are reported under this API's field names.
_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}


class TextConfig(Body):
    """The format of the text."""

    format: dict[str, Any] | None = None
    verbosity: Any = None


class ReasoningConfig(Body):
    """The settings of reasoning."""

    effort: str | None = Field(None, max_length=32)
    summary: Any = None


class ResponsesRequest(Sampling):
    """POST /v1/responses."""

    input: str | list[dict[str, Any]] | None = Field(None, max_length=16 << 20)
    instructions: str | None = None
    max_output_tokens: Whole | None = Field(None, ge=-1, lt=2**31)
    tools: list[dict[str, Any]] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: str | dict[str, Any] | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    previous_response_id: str | None = None
    truncation: str | None = None
    parallel_tool_calls: Flag | None = None
    # Answered synchronously, so that a client that polls finds the answer.
    background: Flag | None = None
    # Refer to objects stored at OpenAI.
    conversation: Any = None
    prompt: Any = None
    # Concern tools that OpenAI runs.
    max_tool_calls: Any = None
    include: list[Any] | None = None
    # Accepted, and without effect here.
    stream_options: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None
    client_metadata: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A parsed request.

    Attributes:
        sent: The request's own items, without those of earlier answers.
        left_out: Fields without effect, for the warning header.
    """

    chat: ChatRequest
    toolbox: Toolbox
    sent: list[dict[str, Any]]
    left_out: list[str]


@router.post("/v1/responses", summary="Answer a conversation, as items", responses=RESPONSES)
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """Answer a conversation, as one response or as server-sent events."""
    service, answers, tenant = service_of(request, body.model), models_of(request).answers, tenant_of(request)
    service.admission.check()
    try:
        reading = await unless_gone(request, in_thread(lambda: _read(body, answers, tenant)))
        turn, num_dropped = await unless_gone(request, _understand(service, reading.chat, tenant, body.truncation))
    except Refusal as refusal:
        raise refusal.renamed(_NAMES) from refusal
    writer = ResponseWriter(turn, body.model_dump(), reading.toolbox, model=service.reported_name(body.model))
    remarks = [remark.replace("max_tokens", "max_output_tokens", 1) for remark in turn.remarks]
    if num_dropped:
        remarks.append(f"truncation: the oldest {num_dropped} messages were left out")
    headers = warnings_of(body, reading.left_out, remarks=remarks)

    async def keep(response: dict[str, Any]) -> None:
        if body.store is not False:
            await in_thread(lambda: answers.add(tenant, response, reading.sent))

    if body.stream:
        return EventStream(
            _stream(service, turn, writer, keep),
            comment=turn.comment,
            failure=writer.failure,
            keepalive_s=service.settings.keepalive_s,
            headers=headers,
        )
    content = encoded(await unless_gone(request, _whole(service, turn, writer, keep)))
    return Response(content, media_type="application/json", headers=headers)


@router.post("/v1/responses/input_tokens", summary="Count a conversation's tokens")
async def input_tokens(body: ResponsesRequest, request: Request) -> dict[str, Any]:
    """Count the tokens of a prompt under the chat template, its tools included."""
    service, answers = service_of(request, body.model), models_of(request).answers
    try:
        reading = await unless_gone(request, in_thread(lambda: _read(body, answers, tenant_of(request))))
        num_tokens = await unless_gone(request, num_prompt(service, reading.chat))
    except Refusal as refusal:
        raise refusal.renamed(_NAMES) from refusal
    return {"object": "response.input_tokens", "input_tokens": num_tokens}


async def _stream(service: Service, turn: Turn, writer: ResponseWriter, keep: Keep) -> AsyncGenerator[bytes, None]:
    with service.admission.enter():
        answer = turn.begin()
        try:
            async for step in steps_of(answer):
                yield writer.step(step, answer)
        finally:
            answer.cancel()
        response = writer.ended(answer)
        await keep(response)
        yield writer.end(response)


async def _whole(service: Service, turn: Turn, writer: ResponseWriter, keep: Keep) -> dict[str, Any]:
    with service.admission.enter():
        answer = turn.begin()
        try:
            async for step in steps_of(answer):
                writer.step(step, answer)
        finally:
            answer.cancel()
    response = writer.ended(answer)
    await keep(response)
    return response


async def _understand(service: Service, chat: ChatRequest, tenant: str, truncation: str | None) -> tuple[Turn, int]:
    """The turn, and how many of the oldest messages were left out to make it fit. `auto` leaves out whole turns.

    Raises:
        Refusal: As `understand`.
    """
    try:
        return await understand(service, chat, tenant), 0
    except Overflow as overflow:
        if truncation != "auto":
            raise
        refused = overflow
    shorter = shortened(chat.messages)
    fewest, most, turn = 0, len(shorter), None
    while fewest < most:
        middle = (fewest + most) // 2
        try:
            turn = await understand(service, chat.model_copy(update={"messages": shorter[middle]}), tenant)
            most = middle
        except Overflow:
            fewest = middle + 1
    if turn is None:
        raise refused
    return turn, len(chat.messages) - len(shorter[most])


def shortened(messages: Sequence[Message]) -> list[list[Message]]:
    """A conversation cut to begin at its second user message, at its third, and so on. Instructions are kept."""
    starts = [index for index, message in enumerate(messages) if message.role == "user"][1:]
    kept = ("system", "developer")
    return [[*(m for m in messages[:start] if m.role in kept), *messages[start:]] for start in starts]


def _read(body: ResponsesRequest, answers: ResponseStore, tenant: str) -> _Asked:
    """Convert a request to a chat request.

    Raises:
        Refusal: The request refers to an answer that is not stored, or is malformed.
    """
    for name, instead in (("conversation", "previous_response_id"), ("prompt", "instructions and input")):
        if getattr(body, name):
            raise Refusal(400, f"{name}: this gateway does not store it; send {instead} instead.", param=name)
    if body.truncation not in (None, "auto", "disabled"):
        raise Refusal(400, "truncation must be auto or disabled.", param="truncation")
    sent = body.input
    if isinstance(sent, str):
        sent = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": sent}]}]
    before: list[dict[str, Any]] = []
    if body.previous_response_id is not None:
        before = _before(answers, tenant, body.previous_response_id)
    elif not sent:
        raise Refusal(400, f"input must have 1 to {MAX_MESSAGES} items.", param="input")
    sent = list(sent or ())
    toolbox = Toolbox()
    toolbox.add(body.tools or (), "tools")
    items = [*before, *sent]
    stored = answers.items(tenant, referred_ids(items))
    history = history_of(items, toolbox, stored=stored)
    if history.lost and len(history.lost) == len(items):
        raise Refusal(404, f"Item with id {history.lost[0][:200]!r} not found.", param="input")
    choice = toolbox.choose(body.tool_choice)
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
    chat = chat_request(
        **{name: getattr(body, name) for name in Sampling.model_fields},
        messages=instructions + history.messages,
        max_tokens=body.max_output_tokens,
        tools=toolbox.functions() or None,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_format(body.text.format if body.text else None),
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
        chat_template_kwargs=body.chat_template_kwargs,
    )
    left_out = [*toolbox.left_out, *(f"input: {name}" for name in history.lost)]
    left_out += [f"include.{name}" for name in body.include or ()]
    if body.text is not None and body.text.verbosity is not None:
        left_out.append("text.verbosity")
    if body.background:
        left_out.append("background")
    return _Asked(chat=chat, toolbox=toolbox, sent=sent, left_out=left_out)


def _before(answers: ResponseStore, tenant: str, name: str) -> list[dict[str, Any]]:
    items = answers.history(tenant, name)
    if items is None:
        raise Refusal(
            400,
            f"Previous response with id {name[:200]!r} not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return items


def _format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    if given is None or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {"name": given.get("name"), "schema": given.get("schema")}}
