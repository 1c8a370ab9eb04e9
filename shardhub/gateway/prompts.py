"""Prompts of completions: texts or token ids, truncated on request, with an optional suffix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from shardhub.errors import PromptError
from shardhub.gateway.defaults import kept_of_prompt
from shardhub.gateway.refusals import Refusal, refusal_of
from shardhub.gateway.schema import MAX_PROMPTS, CompletionRequest
from shardhub.gateway.service import Service, in_thread
from shardhub.text.encoder import MAX_IDS
from shardhub.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt and its text, which is used for an echo.

    Attributes:
        num_added: Number of characters of special tokens that the tokenizer put before the text.
    """

    ids: tuple[int, ...]
    text: str
    num_added: int = 0


async def prompts_of(service: Service, body: CompletionRequest) -> list[Prompt]:
    """The prompts of a request. They are tokenized one by one, until the client disconnects.

    Raises:
        Refusal: There are no prompts or too many; or one is empty, too long, or has an invalid token id.
    """
    suffix = await in_thread(partial(_suffix, service, body)) if body.suffix else None
    return [await in_thread(partial(_prompt, service, body, each, suffix)) for each in _listed(body.prompt)]


def _listed(field: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """A request's prompts as a list.

    Raises:
        Refusal: There are no prompts or too many.
    """
    if isinstance(field, str):
        listed: list[str | list[int]] = [field]
    elif field and all(isinstance(each, int) for each in field):
        listed = [[each for each in field if isinstance(each, int)]]
    else:
        listed = [each for each in field if not isinstance(each, int)]
    if not listed or len(listed) > MAX_PROMPTS:
        raise Refusal(400, f"There must be 1 to {MAX_PROMPTS} prompts, not {len(listed)}.", param="prompt")
    return listed


def _suffix(service: Service, body: CompletionRequest) -> list[int]:
    """The ids of the suffix, which follows the answer.

    Raises:
        Refusal: The model cannot fill in text, or the request combines `suffix` with fields that exclude it.
    """
    if service.infill is None:
        message = "This model cannot fill in text before a suffix: its tokenizer lacks the tokens for that."
        raise Refusal(400, message, param="suffix", code="unsupported_value")
    if body.echo:
        raise Refusal(400, "echo and suffix cannot be combined.", param="echo")
    try:
        return service.head.tokenizer.encode(body.suffix or "", add_special_tokens=False, max_ids=service.max_context)
    except PromptError as error:
        raise refusal_of(error, param="suffix") from error


def _prompt(
    service: Service, body: CompletionRequest, text_or_ids: str | list[int], suffix: list[int] | None
) -> Prompt:
    """A prompt as token ids, truncated and joined with its suffix as the request asks."""
    if suffix is None or service.infill is None:
        return _cut(service, text_or_ids, kept_of_prompt(body, service.max_context, requested=body.asked_tokens))
    first = service.head.tokenizer.encode("")
    ids: tuple[int, ...] = ()
    if text_or_ids:
        prompt = _whole(service, text_or_ids, max_ids=service.max_context)
        ids = prompt.ids[len(first) :] if prompt.num_added else prompt.ids
    return Prompt(ids=tuple(service.infill.prompt(first, ids, suffix)), text="")


def _cut(service: Service, text_or_ids: str | list[int], num_kept: int | None) -> Prompt:
    """The last `num_kept` ids of a prompt, or all of them if it is None."""
    if num_kept is None:
        return _whole(service, text_or_ids, max_ids=service.max_context)
    if not isinstance(text_or_ids, str):
        return _whole(service, text_or_ids[-num_kept:], max_ids=service.max_context)
    prompt = _whole(service, text_or_ids, max_ids=MAX_IDS)
    if num_kept >= len(prompt.ids):
        return prompt
    ids = prompt.ids[-num_kept:]
    return Prompt(ids=ids, text=_text(service.head.tokenizer, ids))


def _whole(service: Service, text_or_ids: str | list[int], *, max_ids: int) -> Prompt:
    """A prompt as token ids. Ids are used as they are: no special token is put before them.

    Args:
        max_ids: Maximum number of ids of a text.

    Raises:
        Refusal: The prompt is empty or too long, or has an invalid token id.
    """
    tokenizer = service.head.tokenizer
    if not text_or_ids:
        raise Refusal(400, "A prompt is empty.", param="prompt")
    if not isinstance(text_or_ids, str):
        if not all(0 <= token < service.vocab_size for token in text_or_ids):
            raise Refusal(400, f"A token id of a prompt is not in 0 to {service.vocab_size - 1}.", param="prompt")
        service.max_tokens(None, [text_or_ids], param="prompt")  # checked before the ids are decoded
        return Prompt(ids=tuple(text_or_ids), text=_text(tokenizer, text_or_ids))
    try:
        ids = tuple(tokenizer.encode(text_or_ids, max_ids=max_ids))
    except PromptError as error:
        raise refusal_of(error, param="prompt") from error
    if not ids:
        raise Refusal(400, "A prompt has no tokens.", param="prompt")
    first = tokenizer.special_tokens.get("bos_token")
    if first is None or text_or_ids.startswith(first) or tokenizer.token_bytes(ids[0]) != first.encode():
        return Prompt(ids=ids, text=text_or_ids)
    return Prompt(ids=ids, text=text_or_ids, num_added=len(first))


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids, which may begin inside a character."""
    detokenizer = tokenizer.text_detokenizer()
    return "".join(map(detokenizer.add, ids)) + detokenizer.finish()
