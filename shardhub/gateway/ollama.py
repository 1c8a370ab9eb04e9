"""POST /api/chat and /api/generate: Ollama's API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError

from shardhub.gateway.answers import Answer
from shardhub.gateway.completions import begun
from shardhub.gateway.events import LineStream, encoded
from shardhub.gateway.ignored import ignored_of_messages
from shardhub.gateway.ollama_lines import LineWriter, failure, line
from shardhub.gateway.ollama_models import ollama_service
from shardhub.gateway.ollama_schema import OllamaChat, OllamaGenerate, OllamaRequest
from shardhub.gateway.ollama_turns import NAMES, chat_of, completion_of, text_chat_of
from shardhub.gateway.refusals import Refusal, refusal_of_fields
from shardhub.gateway.service import Service, tenant_of, unless_gone, warnings_of
from shardhub.gateway.strict import StrictRoute
from shardhub.gateway.turn import Turn, understand

router = APIRouter(tags=["ollama"], route_class=StrictRoute)

RESPONSES: dict[int | str, dict[str, object]] = {
    200: {"content": {"application/x-ndjson": {}, "application/json": {}}},
}


@router.post("/api/chat", summary="Answer a conversation, as lines of JSON", responses=RESPONSES)
async def chat(body: OllamaChat, request: Request) -> Response:
    """Answer a conversation, as a stream of lines or, with `"stream": false`, as one object."""
    service = ollama_service(request, body.model)
    writer = _writer(service, body, is_chat=True)
    if not body.messages:
        return _loaded(service, body, writer)
    service.admission.check()
    try:
        turn = await unless_gone(request, understand(service, chat_of(body), tenant_of(request)))
    except Refusal as refusal:
        raise refusal.renamed(NAMES) from refusal
    headers = _warnings(service, body, ignored_of_messages(body.messages, None), turn.remarks)
    return await _answered(service, body, request, writer, turn.begin, headers)


@router.post("/api/generate", summary="Answer a prompt, as lines of JSON", responses=RESPONSES)
async def generate(body: OllamaGenerate, request: Request) -> Response:
    """Answer a prompt, under the chat template unless it is raw, as a stream of lines or as one object."""
    service = ollama_service(request, body.model)
    is_raw = bool(body.raw or body.suffix or not service.head.tokenizer.has_chat_template)
    writer = _writer(service, body, is_chat=False, with_context=not is_raw)
    if not (body.prompt or body.suffix):
        return _loaded(service, body, writer)
    service.admission.check()
    remarks: tuple[str, ...] = ()
    ignored = [name for name in ("system", "context", "images", "think") if is_raw and getattr(body, name)]
    try:
        if is_raw:
            begin = await unless_gone(request, begun(service, completion_of(body), tenant_of(request)))
        else:
            turn = await unless_gone(request, understand(service, text_chat_of(body), tenant_of(request)))
            begin, remarks = _continued(service, turn, body.context or []).begin, turn.remarks
    except ValidationError as error:
        raise refusal_of_fields(error.errors()).renamed(NAMES) from error
    except Refusal as refusal:
        raise refusal.renamed(NAMES) from refusal
    return await _answered(service, body, request, writer, begin, _warnings(service, body, ignored, remarks))


def _writer(service: Service, body: OllamaRequest, *, is_chat: bool, with_context: bool = False) -> LineWriter:
    num_top = (body.top_logprobs or 0) if body.logprobs else None
    tokenizer = service.head.tokenizer
    return LineWriter(tokenizer, model=body.model, is_chat=is_chat, num_top=num_top, with_context=with_context)


def _warnings(service: Service, body: OllamaRequest, ignored: list[str], remarks: Sequence[str] = ()) -> dict[str, str]:
    options = body.options.ignored(service.max_context) if body.options is not None else []
    return warnings_of(body, [*ignored, *options], remarks=remarks)


def _loaded(service: Service, body: OllamaRequest, writer: LineWriter) -> Response:
    """The answer to a request that only loads the model, which is loaded already."""
    reason = "unload" if body.keep_alive in (0, "0", "0s", "0m") else "load"
    content = line(writer.loaded(reason))
    return Response(content, media_type="application/json", headers=_warnings(service, body, []))


def _continued(service: Service, turn: Turn, context: list[int]) -> Turn:
    """Prepend the ids of an earlier answer's `context` to a turn.

    Raises:
        Refusal: The model does not have an id.
        ContextExceeded: No room is left in the context.
    """
    if not context:
        return turn
    if not all(0 <= token < service.vocab_size for token in context):
        raise Refusal(400, f"A token id of context is not in 0 to {service.vocab_size - 1}.", param="context")
    tokenizer, prompt = service.head.tokenizer, list(turn.ask.prompt)
    first = tokenizer.special_tokens.get("bos_token")
    if first is not None and prompt[:1] == [tokenizer.token_id(first)]:
        del prompt[0]
    prompt = context + prompt
    service.max_tokens(None, [prompt], param="context")
    max_tokens = min(turn.ask.max_tokens, service.max_context - len(prompt))
    return replace(turn, ask=replace(turn.ask, prompt=prompt, max_tokens=max_tokens))


async def _answered(
    service: Service,
    body: OllamaRequest,
    request: Request,
    writer: LineWriter,
    begin: Callable[[], Answer],
    headers: dict[str, str],
) -> Response:
    if body.is_streamed:
        return LineStream(
            _stream(service, writer, begin),
            failure=failure,
            keepalive_s=service.settings.keepalive_s,
            headers=headers,
        )
    content = encoded(await unless_gone(request, _whole(service, writer, begin)))
    return Response(content, media_type="application/json", headers=headers)


async def _stream(service: Service, writer: LineWriter, begin: Callable[[], Answer]) -> AsyncGenerator[bytes, None]:
    with service.admission.enter():
        answer = begin()
        try:
            async for delta in answer:
                for piece in writer.take(delta):
                    yield line(piece)
        finally:
            answer.cancel()
        for piece in writer.last(answer):
            yield line(piece)


async def _whole(service: Service, writer: LineWriter, begin: Callable[[], Answer]) -> dict[str, Any]:
    pieces: list[dict[str, Any]] = []
    with service.admission.enter():
        answer = begin()
        try:
            async for delta in answer:
                pieces += writer.take(delta)
        finally:
            answer.cancel()
    return writer.joined([*pieces, *writer.last(answer)])
