"""POST /v1/chat/completions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from shardhub.errors import PromptError
from shardhub.gateway.answers import Answer, Ask, Delta, FinishReason, Tools
from shardhub.gateway.conversations import messages_of, switches_of, tools_of
from shardhub.gateway.defaults import parameters_of
from shardhub.gateway.events import DONE, RESPONSES, EventStream, event
from shardhub.gateway.likelihoods import chat_logprobs
from shardhub.gateway.merge import merge
from shardhub.gateway.refusals import Refusal, refusal_of
from shardhub.gateway.schema import ChatRequest, NamedTool
from shardhub.gateway.service import Envelope, Service, in_thread, service_of, tenant_of, unless_gone, warnings_of
from shardhub.gateway.strict import StrictRoute
from shardhub.gateway.structured import LlGrammar, shape_of, shape_of_calls
from shardhub.gateway.toolcalls import CallPiece
from shardhub.gateway.usage import usage

router = APIRouter(tags=["chat"], route_class=StrictRoute)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chat:
    """A chat request, understood."""

    body: ChatRequest
    envelope: Envelope
    ask: Ask
    grammar: LlGrammar | None

    @property
    def num_top(self) -> int | None:
        """Likely tokens to tell beside each one; None where no log probabilities are asked for."""
        return (self.body.top_logprobs or 0) if self.body.logprobs else None


@router.post("/v1/chat/completions", summary="Answer a conversation", responses=RESPONSES)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation, whole or as server-sent events."""
    service = service_of(request)
    if body.top_logprobs and not body.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs.", param="top_logprobs")
    num = body.n or 1
    service.admission.check(num)
    chat = await _understand(service, body, tenant_of(request))
    headers = warnings_of(body)
    if body.stream:
        progress = [0, len(chat.ask.prompt)]
        return EventStream(
            _stream(service, chat, num, progress),
            comment=lambda: f"keepalive {progress[0]}/{progress[1]}",
            keepalive_s=service.settings.keepalive_s,
            stall_s=service.settings.stall_s,
            headers=headers,
        )
    return JSONResponse(await unless_gone(request, _whole(service, chat, num)), headers=headers)


async def _understand(service: Service, body: ChatRequest, tenant: str) -> _Chat:
    """Everything that can be wrong with a request is found here, before anything runs."""
    envelope = service.envelope(body, "chat.completion.chunk" if body.stream else "chat.completion", "chatcmpl")
    messages, tools = messages_of(body.messages), tools_of(body.tools)
    switches = switches_of(body.chat_template_kwargs)
    if body.reasoning_effort is not None:
        switches.setdefault("reasoning_effort", body.reasoning_effort)
    parameters = parameters_of(
        body, service.defaults, vocab_size=service.vocab_size, top_logprobs=body.top_logprobs or 0
    )
    forced = _forced(body)
    shape = shape_of_calls(forced) if forced else shape_of(body)
    grammar = await service.structured.grammar(shape) if shape is not None else None
    if grammar is not None:
        switches.setdefault("enable_thinking", False)  # the grammar has no room for it
    shown = None if body.tool_choice == "none" else tools
    tokenizer = service.head.tokenizer
    try:
        prompt = await in_thread(lambda: tokenizer.render_chat(messages, tools=shown, **switches))
    except PromptError as error:
        raise refusal_of(error, param="messages") from error
    known = Tools(parser=service.tool_parser, known=tools or (), forced=[tool.function.name for tool in forced])
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    if asked == 0:
        raise Refusal(400, "max_tokens must be at least 1.", param="max_tokens")
    ask = Ask(
        prompt=prompt,
        parameters=parameters,
        max_tokens=service.max_tokens(asked, [prompt], param=param),
        stops=body.stops,
        end_ids=frozenset() if body.ignore_eos else tokenizer.eos_ids,
        tenant=tenant,
        tools=known if shown else None,
        likelihoods=bool(body.logprobs),
    )
    return _Chat(body=body, envelope=envelope, ask=ask, grammar=grammar)


def _forced(body: ChatRequest) -> list[Any]:
    """The tools of which one must be called."""
    if not isinstance(body.tool_choice, NamedTool) and body.tool_choice != "required":
        return []
    tools = body.tools or []
    if isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        tools = [tool for tool in tools if tool.function.name == name]
    if not tools:
        raise Refusal(400, "tool_choice names no tool of this request.", param="tool_choice")
    return tools


def _begin(service: Service, chat: _Chat, index: int, progress: list[int]) -> Answer:
    """Start one choice: its draws, grammar and parts of text are its own."""

    def moved(done: int, total: int) -> None:
        progress[:] = [done, total]

    splitter = None
    if service.reasoning is not None and chat.grammar is None:
        splitter = service.reasoning.splitter(service.head.tokenizer, chat.ask.prompt)
    ask = replace(
        chat.ask,
        parameters=replace(chat.ask.parameters, choice=index),
        reasoning=splitter,
        grammar=chat.grammar.copy() if chat.grammar is not None else None,
    )
    return Answer(service.head.scheduler, service.head.tokenizer, ask, moved)


async def _whole(service: Service, chat: _Chat, num: int) -> dict[str, Any]:
    with service.admission.enter(num):
        answers = [_begin(service, chat, index, [0, 0]) for index in range(num)]
        found: list[list[Delta]] = [[] for _ in answers]
        try:
            async with aclosing(merge([partial(aiter, answer) for answer in answers], at_once=num)) as items:
                async for index, delta in items:
                    if delta is not None:
                        found[index].append(delta)
        finally:
            for answer in answers:
                answer.cancel()
    choices = [
        {
            "index": index,
            "message": _message(deltas),
            "logprobs": _logprobs(service, chat, deltas),
            "finish_reason": answer.finish,
        }
        for index, (answer, deltas) in enumerate(zip(answers, found, strict=True))
    ]
    return chat.envelope.around(choices=choices, usage=usage(answers, len(chat.ask.prompt)))


def _message(deltas: Sequence[Delta]) -> dict[str, Any]:
    text = "".join(delta.text for delta in deltas)
    reasoning = "".join(delta.reasoning for delta in deltas)
    calls: list[dict[str, Any]] = []
    for piece in (piece for delta in deltas for piece in delta.calls):
        if piece.id is not None:
            calls.append({"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}})
        calls[piece.index]["function"]["arguments"] += piece.arguments
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if reasoning:
        # Clients differ in which of the two they read.
        message |= {"reasoning_content": reasoning, "reasoning": reasoning}
    if calls:
        message |= {"content": text if text.strip() else None, "tool_calls": calls}
    return message


def _logprobs(service: Service, chat: _Chat, deltas: Sequence[Delta]) -> dict[str, Any] | None:
    if chat.num_top is None:
        return None
    return chat_logprobs(service.head.tokenizer, (e for delta in deltas for e in delta.entries), chat.num_top)


async def _stream(service: Service, chat: _Chat, num: int, progress: list[int]) -> AsyncGenerator[bytes, None]:
    with_usage = bool(chat.body.stream_options and chat.body.stream_options.include_usage)
    writer = _Writer(chat.envelope, with_usage=with_usage)
    with service.admission.enter(num):
        answers = [_begin(service, chat, index, progress) for index in range(num)]
        begun: set[int] = set()
        try:
            async for index, delta in _deltas(answers):
                if index not in begun:
                    begun.add(index)
                    yield writer.chunk(index, {"role": "assistant", "content": ""})
                if delta is None:
                    yield writer.chunk(index, {}, finish=answers[index].finish)
                    continue
                entries = delta.entries
                for part in _parts(delta):
                    told = (
                        chat_logprobs(service.head.tokenizer, entries, chat.num_top)
                        if chat.num_top is not None
                        else None
                    )
                    entries = []
                    yield writer.chunk(index, part, logprobs=told)
        finally:
            for answer in answers:
                answer.cancel()
        if with_usage:
            yield event(chat.envelope.around(choices=[], usage=usage(answers, len(chat.ask.prompt))))
        yield DONE


async def _deltas(answers: Sequence[Answer]) -> AsyncIterator[tuple[int, Delta | None]]:
    """Deltas of all choices, and None after the last of each; one alone goes without a queue."""
    if len(answers) > 1:
        async with aclosing(merge([partial(aiter, answer) for answer in answers], at_once=len(answers))) as items:
            async for index, delta in items:
                yield index, delta
        return
    async for only in answers[0]:
        yield 0, only
    yield 0, None


def _parts(delta: Delta) -> list[dict[str, Any]]:
    """The deltas of a stream that one of ours becomes: each holds one kind of thing."""
    parts: list[dict[str, Any]] = []
    if delta.reasoning:
        parts.append({"reasoning_content": delta.reasoning, "reasoning": delta.reasoning})
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
    """Writes chunks; what is the same in all of them is made once."""

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
        finish: FinishReason | None = None,
    ) -> bytes:
        """One event."""
        inside = json.dumps(delta, ensure_ascii=False, separators=(",", ":"))
        told = "null" if logprobs is None else json.dumps(logprobs, ensure_ascii=False, separators=(",", ":"))
        reason = "null" if finish is None else f'"{finish}"'
        text = f'{self._head}{index},"delta":{inside},"logprobs":{told},"finish_reason":{reason}{self._tail}'
        return text.encode("utf-8", "replace")
