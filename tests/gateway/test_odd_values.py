"""Requests whose fields have values of the wrong type, at every depth."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from shardhub.gateway import messages, ollama_schema, ollama_turns, responses
from shardhub.gateway.conversations import messages_of, switches_of, tools_of
from shardhub.gateway.endings import continues_well
from shardhub.gateway.ignored import header_of, ignored_fields, ignored_of_messages
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.response_history import history_of, referred_ids
from shardhub.gateway.response_tools import Toolbox
from shardhub.gateway.schema import ChatRequest
from shardhub.gateway.shapes import shape_of, shape_of_calls
from shardhub.gateway.tool_choice import choice_of
from shardhub.gateway.turn import chat_request
from shardhub.gateway.wishes import wish_of
from shardhub.text.fitting import fitted, plain
from shardhub.text.traits import Traits, strictest

ODD: list[Any] = [None, True, 7, 1.5, "odd", [], {}, [None], [[]], ["odd"], [{}], {"odd": []}, {"type": []}]

FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
FILE = {"type": "file", "file": {"filename": "a.txt", "file_data": "data:text/plain;base64,aGk="}}

CHAT = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, IMAGE, FILE]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": "r"},
        {"role": "assistant", "content": "x", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "r"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}, {"type": "custom", "custom": {"name": "g"}}],
    "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
    },
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    "thinking": {"type": "enabled", "budget_tokens": 5},
    "reasoning": {"effort": "low", "enabled": True},
    "chat_template_kwargs": {"enable_thinking": False, "documents": [{"text": "d"}]},
    "logit_bias": {"1": 2},
    "stop": ["x"],
    "stream_options": {"include_usage": True},
    "bad_words": ["x"],
}
RESPONSES = {
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "t"}], "content": None},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "namespace": "n"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "r"}]},
        {"type": "local_shell_call", "call_id": "d", "action": {"type": "exec", "command": ["ls"]}},
        {"type": "local_shell_call_output", "call_id": "d", "output": "r"},
        {"type": "tool_search_output", "call_id": "e", "tools": [{"type": "function", "name": "h", "parameters": {}}]},
        {"type": "item_reference", "id": "msg_1"},
        {"type": "web_search_call", "action": {"query": "q"}},
        {"type": "additional_tools", "tools": [{"type": "function", "name": "h"}]},
    ],
    "tools": [
        {"type": "function", "name": "f", "parameters": {}},
        {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "k"}]},
        {"type": "custom", "name": "g", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
        {"type": "tool_search", "execution": "client", "parameters": {}},
        {"type": "local_shell"},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
}
MESSAGES = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image", "source": {"type": "base64"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": ""},
                {"type": "tool_use", "id": "t", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "r"}]},
                {
                    "type": "document",
                    "title": "x",
                    "source": {"type": "content", "content": [{"type": "text", "text": "d"}]},
                },
                {"type": "tool_addition", "tools": [{"name": "h", "input_schema": {"type": "object"}}]},
                {"type": "tool_removal", "tool": {"name": "h"}},
                {"type": "search_result", "title": "x", "source": "s", "content": [{"type": "text", "text": "d"}]},
            ],
        },
    ],
    "system": [{"type": "text", "text": "s"}],
    "tools": [{"name": "f", "input_schema": {"type": "object"}}, {"type": "bash_20250124", "name": "bash"}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 5},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
}
OLLAMA = {
    "model": "m",
    "messages": [
        {"role": "user", "content": "hi", "images": ["AA=="]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "t",
            "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
        },
        {"role": "tool", "tool_name": "f", "content": "r"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "format": {"type": "object"},
    "options": {"num_predict": 5, "stop": ["x"], "num_ctx": 5, "temperature": 1},
    "think": True,
}


def changed(value: Any) -> Iterator[Any]:
    """Copies of a value in which one part is something else."""
    yield from copy.deepcopy(ODD)
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        for odd in changed(part):
            copied = copy.deepcopy(value)
            copied[key] = odd
            yield copied


def understood(chat: ChatRequest) -> None:
    """Process a chat request up to the rendering of its prompt."""
    history = messages_of(chat.messages)
    fitted(plain(history), strictest(Traits()), continues=False)
    fitted(plain(history), Traits(ids="named"), continues=False)
    continues_well(history)
    choice = choice_of(chat.tool_choice, chat.tools)
    tools_of(choice.shown)
    if choice.forced:
        shape_of_calls(choice.forced)
    shape_of(chat)
    switches_of(chat.chat_template_kwargs)
    wish_of(chat)
    header_of([*ignored_of_messages(chat.messages, "{{ messages[0].name }}"), *ignored_fields(chat)])


def as_response(body: dict[str, Any]) -> None:
    """Process a request of the Responses API up to its chat."""
    request = responses.ResponsesRequest(**body)
    items = request.input if isinstance(request.input, list) else []
    toolbox = Toolbox()
    toolbox.add(request.tools or (), "tools")
    set(referred_ids(items))
    history = history_of(items, toolbox)
    choice = toolbox.choose(request.tool_choice)
    understood(chat_request(messages=history.messages, tools=toolbox.functions() or None, tool_choice=choice))


APIS = {
    "chat": (CHAT, lambda body: understood(ChatRequest(**body))),
    "responses": (RESPONSES, as_response),
    "messages": (MESSAGES, lambda body: understood(messages.chat_of(messages.CountRequest(**body))[0])),
    "ollama": (OLLAMA, lambda body: understood(ollama_turns.chat_of(ollama_schema.OllamaChat(**body)))),
}


@pytest.mark.parametrize("api", APIS)
def test_an_odd_value_is_used_or_refused(api) -> None:
    """Whatever a field holds at any depth, it is used or refused, and no other error occurs."""
    body, read = APIS[api]
    read(body)
    for odd in changed(body):
        if not isinstance(odd, dict) or not all(isinstance(name, str) for name in odd):
            continue
        try:
            read(odd)
        except (Refusal, ValidationError):
            continue
        except Exception as error:
            raise AssertionError(f"{odd}") from error
