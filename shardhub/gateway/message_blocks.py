"""Writes an answer as a message of Anthropic's API: its blocks, and the events of a stream."""

from __future__ import annotations

import secrets
from typing import Any

from shardhub.gateway.answers import Answer
from shardhub.gateway.blocks import Block, Step
from shardhub.gateway.events import event
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.toolcalls import read_arguments

_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


class MessageWriter:
    """Writes one message, block by block.

    Args:
        num_prompt: Number of tokens of the prompt.
        model: The model's name.
        requested: The request's maximum number of tokens.
    """

    def __init__(self, num_prompt: int, *, model: str, requested: int) -> None:
        self._num_prompt = num_prompt
        self._model = model
        self._requested = requested
        self._id = f"msg_{secrets.token_hex(12)}"
        self._content: list[dict[str, Any]] = []
        self._is_begun = False

    def step(self, step: Step, answer: Answer) -> bytes:
        """Process a step of the answer and return its events."""
        block, events = step.block, self._begin(answer)
        if step.what == "start":
            return events + _event("content_block_start", index=block.index, content_block=_empty(block))
        if step.what == "more":
            return events + _event("content_block_delta", index=block.index, delta=_delta(block, step.text))
        self._content.append(_whole(block))
        return events + _event("content_block_stop", index=block.index)

    def end(self, answer: Answer) -> bytes:
        """The events after the last block."""
        events = self._begin(answer)
        events += _event("message_delta", delta=self._ending(answer), usage=self._usage(answer))
        return events + _event("message_stop")

    def ended(self, answer: Answer) -> dict[str, Any]:
        """The whole message."""
        return {**self._message(answer), **self._ending(answer)}

    def _begin(self, answer: Answer) -> bytes:
        """The event before the first block; empty after the first call."""
        if self._is_begun:
            return b""
        self._is_begun = True
        return _event("message_start", message=self._message(answer))

    def _message(self, answer: Answer) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": list(self._content),
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(answer),
        }

    def _ending(self, answer: Answer) -> dict[str, str | None]:
        if answer.stop is not None and answer.finish == "stop":
            return {"stop_reason": "stop_sequence", "stop_sequence": answer.stop}
        reason = _REASONS.get(answer.finish, "end_turn")
        if answer.finish == "length" and answer.ask.max_tokens < self._requested:
            reason = "model_context_window_exceeded"
        return {"stop_reason": reason, "stop_sequence": None}

    def _usage(self, answer: Answer) -> dict[str, int]:
        num_reused = answer.stream.num_reused
        return {
            # Cached tokens are counted separately, not among these.
            "input_tokens": self._num_prompt - num_reused,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": num_reused,
            "output_tokens": answer.num_tokens,
        }


def failure(refusal: Refusal) -> bytes:
    """The event of a failure, which clients raise as an error."""
    return event(refusal.anthropic_body(), name="error")


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, name=kind)


def _empty(block: Block) -> dict[str, Any]:
    if block.kind == "call":
        return {"type": "tool_use", "id": _call_id(block), "name": block.name, "input": {}}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _delta(block: Block, text: str) -> dict[str, str]:
    if block.kind == "call":
        return {"type": "input_json_delta", "partial_json": text}
    if block.kind == "reasoning":
        return {"type": "thinking_delta", "thinking": text}
    return {"type": "text_delta", "text": text}


def _whole(block: Block) -> dict[str, Any]:
    if block.kind == "call":
        return {**_empty(block), "input": read_arguments(block.text)}
    return {**_empty(block), "thinking" if block.kind == "reasoning" else "text": block.text}


def _call_id(block: Block) -> str:
    return f"toolu_{block.call_id.removeprefix('call_')}"
