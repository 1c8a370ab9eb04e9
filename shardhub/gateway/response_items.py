"""Writes an answer as a response of OpenAI's Responses API: its items, and the events of a stream."""

from __future__ import annotations

import secrets
import time
from typing import Any

from shardhub.gateway.answers import Answer
from shardhub.gateway.blocks import Block, Step
from shardhub.gateway.events import event
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.response_calls import call_item, call_prefix
from shardhub.gateway.response_tools import Toolbox
from shardhub.gateway.turn import Turn
from shardhub.gateway.usage import usage

# Fields of the request that the response repeats.
_TOLD = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "temperature",
    "top_p",
    "metadata",
    "user",
    "previous_response_id",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
)
_PREFIXES = {"reasoning": "rs", "text": "msg"}


class ResponseWriter:
    """Writes one response, item by item.

    Args:
        turn: The turn that is answered.
        request: The fields of the request.
        toolbox: The tools that may be called.
        model: The model's name.
    """

    def __init__(self, turn: Turn, request: dict[str, Any], toolbox: Toolbox, *, model: str) -> None:
        self._turn = turn
        self._request = request
        self._toolbox = toolbox
        self._model = model
        self._id = f"resp_{secrets.token_hex(24)}"
        self._created_at = int(time.time())
        self._items: list[dict[str, Any]] = []
        self._num_events = 0

    def step(self, step: Step, answer: Answer) -> bytes:
        """Process a step of the answer and return its events."""
        if step.block.kind == "call":
            return self._begin() + self._call_step(step, answer)
        block, events = step.block, self._begin()
        at = {"output_index": block.index}
        part, text = _EVENTS[block.kind]
        if step.what == "start":
            self._items.append(_item(block, f"{_PREFIXES[block.kind]}_{secrets.token_hex(24)}", "in_progress"))
            events += self._event("response.output_item.added", **at, item=self._items[-1])
            return events + self._event(f"response.{part}.added", **self._inside(block), part=_part(block, ""))
        inside = self._inside(block)
        logprobs: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
        if step.what == "more":
            return events + self._event(f"response.{text}.delta", **inside, delta=step.text, **logprobs)
        self._items[-1] = _item(block, self._items[-1]["id"], _status(answer))
        events += self._event(f"response.{text}.done", **inside, text=block.text, **logprobs)
        events += self._event(f"response.{part}.done", **inside, part=_part(block, block.text))
        return events + self._event("response.output_item.done", **at, item=self._items[-1])

    def _call_step(self, step: Step, answer: Answer) -> bytes:
        block, tool = step.block, self._toolbox.find(step.block.name)
        at = {"output_index": block.index}
        if step.what == "start":
            head = {"id": f"{call_prefix(tool)}_{secrets.token_hex(24)}", "status": "in_progress"}
            self._items.append({**head, **call_item(block, tool)})
            return self._event("response.output_item.added", **at, item=self._items[-1])
        inside = {"item_id": self._items[block.index]["id"], **at}
        if step.what == "more":
            if tool.kind != "function":
                return b""  # items of other tools are made from complete arguments
            return self._event("response.function_call_arguments.delta", **inside, delta=step.text)
        item = {"id": self._items[-1]["id"], "status": _status(answer), **call_item(block, tool)}
        self._items[-1] = item
        events = b""
        if tool.kind == "function":
            events = self._event(
                "response.function_call_arguments.done", **inside, name=tool.name, arguments=block.text
            )
        elif tool.kind == "custom":
            events = self._event("response.custom_tool_call_input.delta", **inside, delta=item["input"])
            events += self._event("response.custom_tool_call_input.done", **inside, input=item["input"])
        return events + self._event("response.output_item.done", **at, item=item)

    def end(self, response: dict[str, Any]) -> bytes:
        """The events after the last item.

        Args:
            response: The result of `ended`.
        """
        return self._begin() + self._event(f"response.{response['status']}", response=response)

    def ended(self, answer: Answer) -> dict[str, Any]:
        """The whole response."""
        counted = usage([answer], len(self._turn.ask.prompt))
        spent = {
            "input_tokens": counted["prompt_tokens"],
            "input_tokens_details": counted["prompt_tokens_details"],
            "output_tokens": counted["completion_tokens"],
            "output_tokens_details": counted["completion_tokens_details"],
            "total_tokens": counted["total_tokens"],
        }
        if answer.finish == "length":
            return self._response("incomplete", incomplete_details={"reason": "max_output_tokens"}, usage=spent)
        return self._response("completed", completed_at=int(time.time()), usage=spent)

    def failure(self, refusal: Refusal) -> bytes:
        """The events of a failure: the failed response, and an error, which clients raise."""
        events = self._begin()
        code = refusal.code or "server_error"
        error = {"code": code, "message": refusal.message}
        events += self._event("response.failed", response=self._response("failed", error=error))
        return events + self._event("error", **error, param=refusal.param, **refusal.body())

    def _begin(self) -> bytes:
        """The events before the first item; empty after the first call."""
        if self._num_events:
            return b""
        response = self._response("in_progress")
        created = self._event("response.created", response=response)
        return created + self._event("response.in_progress", response=response)

    def _event(self, kind: str, **fields: Any) -> bytes:
        written = event({"type": kind, "sequence_number": self._num_events, **fields}, name=kind)
        self._num_events += 1
        return written

    def _inside(self, block: Block) -> dict[str, Any]:
        place = {"item_id": self._items[block.index]["id"], "output_index": block.index}
        return {**place, "summary_index" if block.kind == "reasoning" else "content_index": 0}

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        request = self._request
        text = {name: value for name, value in (request["text"] or {}).items() if value is not None}
        reasoning = request["reasoning"] or {}
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "background": bool(request["background"]),
            "error": None,
            "incomplete_details": None,
            "model": self._model,
            "output": list(self._items),
            "usage": None,
            **{name: request[name] for name in _TOLD},
            "parallel_tool_calls": request["parallel_tool_calls"] is not False,
            "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
            "store": request["store"] is not False,
            "text": {"format": {"type": "text"}, **text},
            "tool_choice": request["tool_choice"] or "auto",
            "tools": request["tools"] or [],
            "truncation": request["truncation"] or "disabled",
            **more,
        }


# For each kind of block: the events of its part and of the text in it. Reasoning is shown as the summary, which all
# clients of this API read; OpenAI's models show nothing else of it.
_EVENTS = {
    "reasoning": ("reasoning_summary_part", "reasoning_summary_text"),
    "text": ("content_part", "output_text"),
}


def _status(answer: Answer) -> str:
    """The status of an item that ends: incomplete if the answer was cut short."""
    return "incomplete" if answer.is_cut_short else "completed"


def _item(block: Block, name: str, status: str) -> dict[str, Any]:
    """A block of text or reasoning as an output item."""
    parts = [_part(block, block.text)] if block.text else []
    if block.kind == "reasoning":
        return {"id": name, "status": status, "type": "reasoning", "summary": parts}
    return {"id": name, "status": status, "type": "message", "role": "assistant", "content": parts}


def _part(block: Block, text: str) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "summary_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
