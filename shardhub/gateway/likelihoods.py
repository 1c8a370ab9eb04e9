"""Log probabilities of tokens in the two shapes of OpenAI's API."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shardhub.chain.stream import Stream
from shardhub.protocol import TopTokens
from shardhub.text.tokenizer import Tokenizer

# JSON has no infinity: this stands for a token that a mask or a bias forbade.
_FORBIDDEN = -9999.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One token of a text.

    Attributes:
        start: Number of characters of the text before it.
        logprob: None for the first token of a prompt, which nothing precedes.
    """

    token: int
    start: int
    logprob: float | None
    top: TopTokens


def chat_logprobs(tokenizer: Tokenizer, entries: Iterable[Entry], num_top: int) -> dict[str, Any]:
    """The `logprobs` of a chat's choice or chunk."""
    content = []
    for entry in entries:
        tops = zip(entry.top.ids[:num_top], entry.top.logprobs, strict=False)
        content.append(
            {
                **_token(tokenizer, entry.token, entry.logprob),
                "top_logprobs": [_token(tokenizer, token, logprob) for token, logprob in tops],
            }
        )
    return {"content": content, "refusal": None}


def completion_logprobs(tokenizer: Tokenizer, entries: Sequence[Entry], num_top: int) -> dict[str, Any]:
    """The `logprobs` of a completion's choice or chunk.

    Tokens are named by their text in `top_logprobs`. Where two tokens have the same text, the likelier one is kept.
    """
    tops: list[dict[str, float] | None] = []
    for entry in entries:
        if entry.logprob is None:
            tops.append(None)
            continue
        named: dict[str, float] = {}
        for token, logprob in zip(entry.top.ids[:num_top], entry.top.logprobs, strict=False):
            named.setdefault(token_name(tokenizer, token), finite(logprob))
        # The token itself is always listed, even if it is not among the likeliest.
        named.setdefault(token_name(tokenizer, entry.token), finite(entry.logprob))
        tops.append(named)
    return {
        "tokens": [token_name(tokenizer, entry.token) for entry in entries],
        "token_logprobs": [None if entry.logprob is None else finite(entry.logprob) for entry in entries],
        "top_logprobs": tops,
        "text_offset": [entry.start for entry in entries],
    }


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; incomplete characters as `bytes:\\\\xe2\\\\x82`, as OpenAI writes them."""
    piece = tokenizer.token_bytes(token)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def finite(logprob: float) -> float:
    """A log probability as a finite number, which JSON can hold."""
    return logprob if math.isfinite(logprob) else _FORBIDDEN


def _token(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    piece = tokenizer.token_bytes(token)
    return {
        "token": piece.decode("utf-8", "replace"),
        "logprob": finite(logprob if logprob is not None else -math.inf),
        "bytes": list(piece),
    }


def prompt_entries(tokenizer: Tokenizer, stream: Stream, *, first_char: int = 0) -> list[Entry]:
    """The tokens of a scored prompt with their places in its text. The first one has no log probability."""
    detokenizer = tokenizer.text_detokenizer()
    entries: list[Entry] = []
    start = first_char
    logprobs: list[float | None] = [None, *stream.prompt_logprobs]
    tops = [TopTokens(), *stream.prompt_top] if stream.prompt_top else [TopTokens()] * len(logprobs)
    for token, logprob, top in zip(stream.request.prompt, logprobs, tops, strict=True):
        entries.append(Entry(token=token, start=max(0, start), logprob=logprob, top=top))
        if start < 0:  # a token that the tokenizer put before the text
            start = 0
            continue
        start += len(detokenizer.add(token))
    return entries
