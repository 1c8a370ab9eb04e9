"""The tokenizer's routes, in vLLM's format. With them, lm-eval needs no tokenizer of its own."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from shardhub.errors import PromptError
from shardhub.gateway.conversations import messages_of, switches_of, tools_of
from shardhub.gateway.endings import CONTINUE, PROMPT, ending_of
from shardhub.gateway.refusals import Refusal, refusal_of
from shardhub.gateway.schema import DetokenizeRequest, TokenizeRequest
from shardhub.gateway.served_models import service_of
from shardhub.gateway.service import in_thread, unless_gone
from shardhub.gateway.strict import StrictRoute

router = APIRouter(tags=["tokens"], route_class=StrictRoute)

# More than the chain's context, since clients may truncate the ids themselves, but bounded.
_MAX_IDS = 1 << 17


@router.post("/tokenize", summary="Convert text to token ids")
async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
    """Return the token ids of a prompt, or of messages under the chat template."""
    service = service_of(request, body.model)
    tokenizer = service.head.tokenizer
    most = max(_MAX_IDS, service.max_context)
    if (body.prompt is None) == (body.messages is None):
        raise Refusal(400, "Give a prompt or messages.", param="prompt")
    try:
        if body.messages is not None:
            messages = messages_of(body.messages, strict=service.settings.strict_content)
            switches, tools = switches_of(body.chat_template_kwargs), tools_of(body.tools)
            ending = ending_of(body.model_dump(include={CONTINUE, PROMPT}), messages)
            work = in_thread(
                lambda: tokenizer.render_chat(messages, tools=tools, ending=ending, max_ids=most, **switches).ids
            )
        else:
            text, special = body.prompt or "", body.add_special_tokens is not False
            work = in_thread(lambda: tokenizer.encode(text, add_special_tokens=special, max_ids=most))
        ids = await unless_gone(request, work)
    except PromptError as error:
        raise refusal_of(error, param="prompt" if body.messages is None else "messages") from error
    texts = None
    if body.return_token_strs:
        texts = [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in ids]
    return {"count": len(ids), "max_model_len": service.max_context, "tokens": ids, "token_strs": texts}


@router.post("/detokenize", summary="Convert token ids to text")
async def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, Any]:
    """Return the text of token ids."""
    service = service_of(request, body.model)
    if not all(0 <= token < service.vocab_size for token in body.tokens):
        raise Refusal(400, f"A token id is not in 0 to {service.vocab_size - 1}.", param="tokens")
    if len(body.tokens) > (most := max(_MAX_IDS, service.max_context)):
        raise Refusal(400, f"At most {most} token ids can be converted at once.", param="tokens")
    detokenizer = service.head.tokenizer.text_detokenizer()
    work = in_thread(lambda: "".join(map(detokenizer.add, body.tokens)) + detokenizer.finish())
    text = await unless_gone(request, work)
    return {"prompt": text}


@router.get("/tokenizer_info", summary="Describe the tokenizer: special tokens and chat template")
async def tokenizer_info(request: Request, model: str | None = None) -> dict[str, Any]:
    """Return the special tokens by name and the chat template of a model."""
    service = service_of(request, model)
    tokenizer = service.head.tokenizer
    names: dict[str, str | None] = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"))
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        **tokenizer.special_tokens,
        "chat_template": tokenizer.chat_template,
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": service.max_context,
    }
