"""POST /v1/chat/completions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from shardhub.gateway.answers import Answer
from shardhub.gateway.deltas import Delta
from shardhub.gateway.events import DONE, RESPONSES, EventStream, event
from shardhub.gateway.ignored import ignored_of_messages
from shardhub.gateway.legacy import old_finish, old_message
from shardhub.gateway.likelihoods import chat_logprobs
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.schema import ChatRequest
from shardhub.gateway.served_models import service_of
from shardhub.gateway.service import Envelope, Service, tenant_of, unless_gone, warnings_of
from shardhub.gateway.strict import StrictRoute
from shardhub.gateway.toolcalls import CallPiece
from shardhub.gateway.turn import Turn, deltas_of, understand
from shardhub.gateway.usage import usage

router = APIRouter(tags=["chat"], route_class=StrictRoute)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chat:
    """A turn and the envelope of its answers."""

    turn: Turn
    envelope: Envelope

    @property
    def num_top(self) -> int | None:
        """Number of likely tokens to report beside each token; None where no log probabilities are requested."""
        body = self.turn.body
        return (body.top_logprobs or 0) if body.logprobs else None

    @property
    def reasoning_fields(self) -> tuple[str, ...]:
        """The fields of a message that hold the reasoning; empty where the client excludes it."""
        body = self.turn.body
        is_left_out = isinstance(body.reasoning, dict) and body.reasoning.get("exclude") is True
        return () if body.include_reasoning is False or is_left_out else self.turn.service.settings.reasoning_fields

    def shaped(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message, or a part of one, in the request's form: `function_call` for a request with `functions`."""
        return old_message(message) if self.turn.body.functions else message

    def finish(self, answer: Answer) -> str:
        """Why an answer ended, in the request's form."""
        return old_finish(answer.finish) if self.turn.body.functions else answer.finish


@router.post("/v1/chat/completions", summary="Answer a conversation", responses=RESPONSES)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation, as one object or as server-sent events."""
    service = service_of(request, body.model)
    if body.top_logprobs and not body.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs.", param="top_logprobs")
    num = body.n or 1
    service.admission.check(num)
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    envelope = service.envelope(body.model, kind, "chatcmpl")
    turn = await unless_gone(request, understand(service, body, tenant_of(request)))
    chat = _Chat(turn=turn, envelope=envelope)
    left_out = ignored_of_messages(body.messages, service.head.tokenizer.chat_template)
    headers = warnings_of(body, left_out, remarks=turn.remarks)
    if body.stream:
        return EventStream(
            _stream(service, chat, num),
            comment=chat.turn.comment,
            keepalive_s=service.settings.keepalive_s,
            headers=headers,
        )
    return JSONResponse(await unless_gone(request, _whole(service, chat, num)), headers=headers)


async def _whole(service: Service, chat: _Chat, num: int) -> dict[str, Any]:
    with service.admission.enter(num):
        answers = [chat.turn.begin(index) for index in range(num)]
        deltas: list[list[Delta]] = [[] for _ in answers]
        try:
            async with aclosing(deltas_of(answers)) as items:
                async for index, delta in items:
                    if delta is not None:
                        deltas[index].append(delta)
        finally:
            for answer in answers:
                answer.cancel()
    choices = [
        {
            "index": index,
            "message": chat.shaped(_message(parts, chat.reasoning_fields)),
            "logprobs": _logprobs(service, chat, parts),
            "finish_reason": chat.finish(answer),
        }
        for index, (answer, parts) in enumerate(zip(answers, deltas, strict=True))
    ]
    return chat.envelope.around(choices=choices, usage=usage(answers, len(chat.turn.ask.prompt)))


def _message(deltas: Sequence[Delta], reasoning_fields: Sequence[str]) -> dict[str, Any]:
    text = "".join(delta.text for delta in deltas)
    reasoning = "".join(delta.reasoning for delta in deltas)
    calls: list[dict[str, Any]] = []
    for piece in (piece for delta in deltas for piece in delta.calls):
        if piece.id is not None:
            calls.append({"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}})
        calls[piece.index]["function"]["arguments"] += piece.arguments
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if reasoning:
        message |= dict.fromkeys(reasoning_fields, reasoning)
    if calls:
        message |= {"content": text if text.strip() else None, "tool_calls": calls}
    return message


def _logprobs(service: Service, chat: _Chat, deltas: Sequence[Delta]) -> dict[str, Any] | None:
    if chat.num_top is None:
        return None
    return chat_logprobs(service.head.tokenizer, (e for delta in deltas for e in delta.entries), chat.num_top)


async def _stream(service: Service, chat: _Chat, num: int) -> AsyncGenerator[bytes, None]:
    with_usage = bool(chat.turn.body.stream_options and chat.turn.body.stream_options.include_usage)
    writer = _Writer(chat.envelope, with_usage=with_usage)
    with service.admission.enter(num):
        answers = [chat.turn.begin(index) for index in range(num)]
        begun: set[int] = set()
        try:
            async for index, delta in deltas_of(answers):
                if index not in begun:
                    begun.add(index)
                    yield writer.chunk(index, {"role": "assistant", "content": ""})
                if delta is None:
                    yield writer.chunk(index, {}, finish=chat.finish(answers[index]))
                    continue
                entries = delta.entries
                for part in _parts(delta, chat.reasoning_fields):
                    logprobs = (
                        chat_logprobs(service.head.tokenizer, entries, chat.num_top)
                        if chat.num_top is not None
                        else None
                    )
                    entries = []
                    yield writer.chunk(index, chat.shaped(part), logprobs=logprobs)
        finally:
            for answer in answers:
                answer.cancel()
        if with_usage:
            yield event(chat.envelope.around(choices=[], usage=usage(answers, len(chat.turn.ask.prompt))))
        yield DONE


def _parts(delta: Delta, reasoning_fields: Sequence[str]) -> list[dict[str, Any]]:
    """The deltas of OpenAI's stream for one of ours: each holds reasoning, text or calls."""
    parts: list[dict[str, Any]] = []
    if delta.reasoning and reasoning_fields:
        parts.append(dict.fromkeys(reasoning_fields, delta.reasoning))
    if delta.text:
        parts.append({"content": delta.text})
    parts += [{"tool_calls": [_call(piece)]} for piece in delta.calls]
    return parts or [{"content": ""}]


def _call(piece: CallPiece) -> dict[str, Any]:
    if piece.id is None:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}


class _Writer:
    """Writes chunks. The parts common to all chunks are made once."""

    def __init__(self, envelope: Envelope, *, with_usage: bool) -> None:
        opening = json.dumps(envelope.around(), ensure_ascii=False, separators=(",", ":"))[:-1]
        self._head = f'data: {opening},"choices":[{{"index":'
        self._tail = '}],"usage":null}\n\n' if with_usage else "}]}\n\n"

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> bytes:
        """One chunk as a server-sent event."""
        inside = json.dumps(delta, ensure_ascii=False, separators=(",", ":"))
        likelihoods = "null" if logprobs is None else json.dumps(logprobs, ensure_ascii=False, separators=(",", ":"))
        reason = "null" if finish is None else f'"{finish}"'
        text = f'{self._head}{index},"delta":{inside},"logprobs":{likelihoods},"finish_reason":{reason}{self._tail}'
        return text.encode("utf-8", "replace")
