"""POST /v1/completions: one or several prompts as text or token ids, scored on request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from shardhub.gateway.answers import Answer
from shardhub.gateway.asks import Ask
from shardhub.gateway.defaults import parameters_of
from shardhub.gateway.deltas import Delta
from shardhub.gateway.events import DONE, RESPONSES, EventStream, event
from shardhub.gateway.likelihoods import Entry, completion_logprobs, prompt_entries
from shardhub.gateway.masks import end_ids_of, rules_of
from shardhub.gateway.merge import merge
from shardhub.gateway.prompts import Prompt, prompts_of
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.schema import CompletionRequest
from shardhub.gateway.served_models import service_of
from shardhub.gateway.service import (
    Envelope,
    Service,
    cut_remark,
    in_thread,
    tenant_of,
    unless_gone,
    warnings_of,
)
from shardhub.gateway.shapes import shape_of
from shardhub.gateway.strict import StrictRoute
from shardhub.gateway.structured import LlGrammar
from shardhub.gateway.usage import usage

router = APIRouter(tags=["completions"], route_class=StrictRoute)

# Choices of one request that run concurrently; its other choices wait for these, so that it does not fill the chain.
_AT_ONCE = 8


@dataclass(slots=True, kw_only=True)
class _Completion:
    """A parsed request, and the answers that have begun by the index of their choice."""

    body: CompletionRequest
    envelope: Envelope
    prompts: list[Prompt]
    asks: list[Ask]
    grammar: LlGrammar | None
    answers: dict[int, Answer] = field(default_factory=dict)

    @property
    def num(self) -> int:
        """Number of choices for each prompt."""
        return self.body.n or 1

    def usage(self) -> dict[str, Any]:
        return usage(self.answers.values(), sum(len(prompt.ids) for prompt in self.prompts))


@router.post("/v1/completions", summary="Continue a text", responses=RESPONSES)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue one or several texts; the answer is one JSON object or server-sent events."""
    service = service_of(request, body.model)
    service.admission.check()
    completion = await unless_gone(request, _understand(service, body, tenant_of(request)))
    remark = cut_remark(body.asked_tokens, completion.asks[0].max_tokens, param="max_tokens")
    headers = warnings_of(body, remarks=[remark] if remark else ())
    if body.stream:
        return EventStream(
            _stream(service, completion),
            keepalive_s=service.settings.keepalive_s,
            headers=headers,
        )
    return JSONResponse(await unless_gone(request, _whole(service, completion)), headers=headers)


async def _understand(service: Service, body: CompletionRequest, tenant: str) -> _Completion:
    envelope = service.envelope(body.model, "text_completion", "cmpl")
    if body.best_of not in (None, body.n or 1):
        raise Refusal(400, "best_of must equal n.", param="best_of")
    prompts = await prompts_of(service, body)
    parameters = parameters_of(body, service.defaults, vocab_size=service.vocab_size, top_logprobs=body.logprobs or 0)
    end_ids = end_ids_of(body, service.head.tokenizer)
    if body.suffix and service.infill is not None and not body.ignore_eos:
        end_ids |= service.infill.end_ids
    tokenizer, num_ids = service.head.tokenizer, service.vocab_size
    rules = await in_thread(partial(rules_of, body, tokenizer, num_ids=num_ids, end_ids=end_ids))
    shape = shape_of(body)
    grammar = await service.structured.grammar(shape) if shape is not None else None
    ids = [prompt.ids for prompt in prompts]
    for prompt_ids in ids:
        service.check_ids(prompt_ids, param="prompt")
    requested = body.asked_tokens
    if requested == 0 and not body.echo:
        raise Refusal(400, "max_tokens of 0 needs echo.", param="max_tokens")
    max_tokens = service.max_tokens(requested, ids, param="prompt")
    asks = [
        Ask(
            prompt=prompt,
            parameters=replace(parameters, choice=choice),
            max_tokens=max_tokens,
            stops=body.stops,
            end_ids=end_ids,
            tenant=tenant,
            keeps_stop=bool(body.include_stop_str_in_output),
            rules=rules,
            continues=True,
            score=bool(body.echo and body.logprobs is not None),
            likelihoods=body.logprobs is not None,
        )
        for prompt in ids
        for choice in range(body.n or 1)
    ]
    return _Completion(body=body, envelope=envelope, prompts=prompts, asks=asks, grammar=grammar)


async def begun(service: Service, body: CompletionRequest, tenant: str) -> Callable[[], Answer]:
    """Parse a request of one prompt and one choice.

    Returns:
        A function that begins the answer.

    Raises:
        Refusal: The request cannot be served.
    """
    completion = await _understand(service, body, tenant)

    def begin() -> Answer:
        return _answer(service, completion, 0)

    return begin


def _begin(service: Service, completion: _Completion, index: int) -> AsyncIterator[Delta]:
    return aiter(_answer(service, completion, index))


def _answer(service: Service, completion: _Completion, index: int) -> Answer:
    grammar = completion.grammar.copy() if completion.grammar is not None else None
    ask = replace(completion.asks[index], grammar=grammar)
    answer = Answer(service.head.scheduler, service.head.tokenizer, ask)
    completion.answers[index] = answer
    return answer


async def _run(service: Service, completion: _Completion) -> AsyncGenerator[tuple[int, Delta | None], None]:
    """Yield the deltas of all choices, each with its index, and None after a choice's last."""
    num = len(completion.asks)
    if num == 1:
        async for delta in _begin(service, completion, 0):
            yield 0, delta
        yield 0, None
        return
    sources = [partial(_begin, service, completion, index) for index in range(num)]
    async with aclosing(merge(sources, at_once=_AT_ONCE)) as items:
        async for item in items:
            yield item


async def _whole(service: Service, completion: _Completion) -> dict[str, Any]:
    deltas_of: list[list[Delta]] = [[] for _ in completion.asks]
    with service.admission.enter(min(_AT_ONCE, len(completion.asks))):
        try:
            async with aclosing(_run(service, completion)) as items:
                async for index, delta in items:
                    if delta is not None:
                        deltas_of[index].append(delta)
        finally:
            for answer in completion.answers.values():
                answer.cancel()
    choices = []
    for index, deltas in enumerate(deltas_of):
        echo, entries = _echo(service, completion, index)
        entries += [_moved(entry, len(echo)) for delta in deltas for entry in delta.entries]
        choices.append(
            {
                "index": index,
                "text": echo + "".join(delta.text for delta in deltas),
                "logprobs": _logprobs(service, completion, entries),
                "finish_reason": _finish(completion, index),
            }
        )
    return completion.envelope.around(choices=choices, usage=completion.usage())


async def _stream(service: Service, completion: _Completion) -> AsyncGenerator[bytes, None]:
    body = completion.body
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    tail: dict[str, Any] = {"usage": None} if with_usage else {}

    def chunk(index: int, text: str, entries: list[Entry], finish: str | None = None) -> bytes:
        logprobs = _logprobs(service, completion, entries) if finish is None else None
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return event(completion.envelope.around(choices=[choice], **tail))

    echoed: dict[int, int] = {}  # number of characters before each choice's own text
    with service.admission.enter(min(_AT_ONCE, len(completion.asks))):
        try:
            async with aclosing(_run(service, completion)) as items:
                async for index, delta in items:
                    if index not in echoed:
                        echo, entries = _echo(service, completion, index)
                        echoed[index] = len(echo)
                        if echo:
                            yield chunk(index, echo, entries)
                    if delta is None:
                        yield chunk(index, "", [], _finish(completion, index))
                    elif delta.text or delta.entries:
                        yield chunk(index, delta.text, [_moved(entry, echoed[index]) for entry in delta.entries])
        finally:
            for answer in completion.answers.values():
                answer.cancel()
        if with_usage:
            yield event(completion.envelope.around(choices=[], usage=completion.usage()))
        yield DONE


def _finish(completion: _Completion, index: int) -> str:
    return completion.answers[index].finish


def _echo(service: Service, completion: _Completion, index: int) -> tuple[str, list[Entry]]:
    """The text and tokens of a choice's prompt, where the request asks for an echo; else empty."""
    if not completion.body.echo:
        return "", []
    prompt = completion.prompts[index // completion.num]
    stream = completion.answers[index].stream
    entries = (
        prompt_entries(service.head.tokenizer, stream, first_char=-prompt.num_added) if stream.request.score else []
    )
    return prompt.text, entries


def _moved(entry: Entry, num_chars: int) -> Entry:
    return replace(entry, start=entry.start + num_chars) if num_chars else entry


def _logprobs(service: Service, completion: _Completion, entries: Sequence[Entry]) -> dict[str, Any] | None:
    if completion.body.logprobs is None:
        return None
    return completion_logprobs(service.head.tokenizer, entries, completion.body.logprobs)
