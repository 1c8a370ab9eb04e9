"""An answer as a response of OpenAI's newer API: its items, and the events of a stream."""

from __future__ import annotations

import secrets
import time
from typing import Any

from shardhub.gateway.answers import Answer
from shardhub.gateway.blocks import Block, Step
from shardhub.gateway.events import event
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.turn import Turn
from shardhub.gateway.usage import usage

# What is told of a request as it was sent.
_TOLD = ("instructions", "max_output_tokens", "temperature", "top_p", "metadata", "user")
_PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}


class ResponseWriter:
    """Writes one response, item by item.

    Args:
        turn: What it answers.
        asked: The request's fields.
        model: The model's name.
    """

    def __init__(self, turn: Turn, asked: dict[str, Any], *, model: str) -> None:
        self._turn = turn
        self._asked = asked
        self._model = model
        self._id = f"resp_{secrets.token_hex(24)}"
        self._created_at = int(time.time())
        self._items: list[dict[str, Any]] = []
        self._num_events = 0

    def step(self, step: Step, answer: Answer) -> bytes:
        """Take in a step of the answer; the events that tell of it."""
        block, told = step.block, self._begin()
        at = {"output_index": block.index}
        if step.what == "start":
            self._items.append(_item(block, f"{_PREFIXES[block.kind]}_{secrets.token_hex(24)}", "in_progress"))
            told += self._event("response.output_item.added", **at, item=self._items[-1])
            if block.kind != "call":
                told += self._event("response.content_part.added", **self._inside(block), part=_part(block, ""))
            return told
        inside = self._inside(block)
        name = {"reasoning": "reasoning_text", "text": "output_text", "call": "function_call_arguments"}[block.kind]
        logprobs: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
        if step.what == "more":
            return told + self._event(f"response.{name}.delta", **inside, delta=step.text, **logprobs)
        # A block that ends may do so because the answer was cut short.
        status = "incomplete" if answer.is_cut_short else "completed"
        self._items[-1] = _item(block, self._items[-1]["id"], status)
        if block.kind == "call":
            told += self._event(f"response.{name}.done", **inside, name=block.name, arguments=block.text)
        else:
            told += self._event(f"response.{name}.done", **inside, text=block.text, **logprobs)
            told += self._event("response.content_part.done", **inside, part=_part(block, block.text))
        return told + self._event("response.output_item.done", **at, item=self._items[-1])

    def end(self, answer: Answer) -> bytes:
        """The events after the last item."""
        told, response = self._begin(), self.ended(answer)
        return told + self._event(f"response.{response['status']}", response=response)

    def ended(self, answer: Answer) -> dict[str, Any]:
        """The whole response."""
        counted = usage([answer], len(self._turn.ask.prompt))
        told = {
            "input_tokens": counted["prompt_tokens"],
            "input_tokens_details": counted["prompt_tokens_details"],
            "output_tokens": counted["completion_tokens"],
            "output_tokens_details": counted["completion_tokens_details"],
            "total_tokens": counted["total_tokens"],
        }
        if answer.finish == "length":
            return self._response("incomplete", incomplete_details={"reason": "max_output_tokens"}, usage=told)
        return self._response("completed", completed_at=int(time.time()), usage=told)

    def failure(self, refusal: Refusal) -> bytes:
        """The events of a failure: the response that failed, and an error, which clients raise."""
        told = self._begin()
        code = refusal.code or "server_error"
        error = {"code": code, "message": refusal.message}
        told += self._event("response.failed", response=self._response("failed", error=error))
        return told + self._event("error", **error, param=refusal.param, **refusal.body())

    def _begin(self) -> bytes:
        """The events before the first item, once."""
        if self._num_events:
            return b""
        response = self._response("in_progress")
        told = self._event("response.created", response=response)
        return told + self._event("response.in_progress", response=response)

    def _event(self, kind: str, **fields: Any) -> bytes:
        told = event({"type": kind, "sequence_number": self._num_events, **fields}, name=kind)
        self._num_events += 1
        return told

    def _inside(self, block: Block) -> dict[str, Any]:
        place = {"item_id": self._items[block.index]["id"], "output_index": block.index}
        return place if block.kind == "call" else {**place, "content_index": 0}

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        asked = self._asked
        text = asked["text"] or {}
        reasoning = asked["reasoning"] or {}
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._model,
            "output": list(self._items),
            "usage": None,
            **{name: asked[name] for name in _TOLD},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": reasoning.get("effort"), "summary": None},
            "store": False,
            "text": {"format": text.get("format") or {"type": "text"}},
            "tool_choice": asked["tool_choice"] or "auto",
            "tools": asked["tools"] or [],
            "truncation": "disabled",
            **more,
        }


def _item(block: Block, name: str, status: str) -> dict[str, Any]:
    """A block as an item of the output."""
    head = {"id": name, "status": status}
    if block.kind == "call":
        called = {"call_id": block.call_id, "name": block.name, "arguments": block.text}
        return {**head, "type": "function_call", **called}
    parts = [_part(block, block.text)] if block.text else []
    if block.kind == "reasoning":
        return {**head, "type": "reasoning", "summary": [], "content": parts}
    return {**head, "type": "message", "role": "assistant", "content": parts}


def _part(block: Block, text: str) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
