"""Writes answers of Ollama's API: a line for each piece, and a last line with counts and durations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from shardhub.gateway.answers import Answer
from shardhub.gateway.blocks import Blocks, Step
from shardhub.gateway.deltas import Delta
from shardhub.gateway.events import encoded
from shardhub.gateway.likelihoods import chat_logprobs
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.toolcalls import read_arguments
from shardhub.text.tokenizer import Tokenizer


def now() -> str:
    """The current time in Ollama's format."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def line(data: object) -> bytes:
    """Encode a value as one line."""
    return encoded(data) + b"\n"


def failure(refusal: Refusal) -> bytes:
    """The line of a failure after the first line."""
    return line(refusal.ollama_body())


class LineWriter:
    """Writes one answer.

    Args:
        model: The model's name, as the client wrote it.
        is_chat: Whether the answer is a message; otherwise it is a text.
        num_top: Number of likely tokens to report beside each token; None where no log probabilities are requested.
        with_context: Whether to report the ids of prompt and answer at the end, for a client that continues from them.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, model: str, is_chat: bool, num_top: int | None = None, with_context: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._is_chat = is_chat
        self._num_top = num_top
        self._with_context = with_context
        self._blocks = Blocks()
        self._began_ns = self._first_ns = time.perf_counter_ns()
        self._has_first = False
        self._num_calls = 0

    def take(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yield the pieces of one delta."""
        if not self._has_first:
            self._has_first, self._first_ns = True, time.perf_counter_ns()
        logprobs = self._logprobs(delta)
        for step in self._blocks.take(delta):
            if (piece := self._piece(step)) is not None:
                yield piece | logprobs
                logprobs = {}
        if logprobs:
            yield self._around("") | logprobs

    def last(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """Yield the end of an answer: the rest of it, then counts and durations."""
        for step in self._blocks.finish():
            if (piece := self._piece(step)) is not None:
                yield piece
        ended_ns = time.perf_counter_ns()
        if not self._has_first:
            self._first_ns = ended_ns
        prompt = answer.ask.prompt
        counts = {
            "total_duration": ended_ns - self._began_ns,
            "load_duration": 0,
            "prompt_eval_count": len(prompt),
            "prompt_eval_duration": self._first_ns - self._began_ns,
            "eval_count": answer.num_tokens,
            "eval_duration": ended_ns - self._first_ns,
        }
        context = {"context": [*prompt, *answer.stream.answer]} if self._with_context else {}
        reason = "length" if answer.finish == "length" else "stop"
        yield self._around("") | {"done": True, "done_reason": reason} | context | counts

    def loaded(self, reason: str) -> dict[str, Any]:
        """The answer to a request without a prompt, which only loads the model."""
        return self._around("") | {"done": True, "done_reason": reason}

    def joined(self, pieces: list[dict[str, Any]]) -> dict[str, Any]:
        """Join the pieces into one answer."""
        whole = dict(pieces[-1])
        logprobs = [each for piece in pieces for each in piece.get("logprobs", ())]
        if logprobs:
            whole["logprobs"] = logprobs
        parts = [piece["message"] if self._is_chat else piece for piece in pieces]
        texts = {
            name: "".join(part.get(name, "") for part in parts)
            for name in ("content" if self._is_chat else "response", "thinking")
        }
        if not texts["thinking"]:
            del texts["thinking"]
        if not self._is_chat:
            return whole | texts
        calls = [call for part in parts for call in part.get("tool_calls", ())]
        return whole | {"message": {"role": "assistant", **texts, **({"tool_calls": calls} if calls else {})}}

    def _piece(self, step: Step) -> dict[str, Any] | None:
        kind = step.block.kind
        if kind == "call":
            return self._around("", tool_calls=[self._call(step)]) if step.what == "end" else None
        if step.what != "more":
            return None
        return self._around("", thinking=step.text) if kind == "reasoning" else self._around(step.text)

    def _call(self, step: Step) -> dict[str, Any]:
        block = step.block
        function = {"index": self._num_calls, "name": block.name, "arguments": read_arguments(block.text)}
        self._num_calls += 1
        return {"id": block.call_id, "function": function}

    def _around(self, text: str, **more: Any) -> dict[str, Any]:
        fields = {"model": self._model, "created_at": now()}
        if self._is_chat:
            return fields | {"message": {"role": "assistant", "content": text, **more}, "done": False}
        return fields | {"response": text, **more, "done": False}

    def _logprobs(self, delta: Delta) -> dict[str, Any]:
        if self._num_top is None or not delta.entries:
            return {}
        content = (chat_logprobs(self._tokenizer, delta.entries, self._num_top) or {}).get("content") or []
        return {"logprobs": content}
