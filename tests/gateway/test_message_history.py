"""Blocks of Anthropic's API as messages of a chat."""

from __future__ import annotations

import pytest

from shardhub.gateway.message_history import chat_messages, instructions
from shardhub.gateway.message_tools import MessageTools
from shardhub.gateway.refusals import Refusal

TEXT = {"type": "text", "text": "a"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}


def messages(role, content, tools=None):
    return chat_messages(role, content, "messages[0].content", tools or MessageTools())


@pytest.mark.parametrize(
    ("content", "result"),
    [
        (None, ""),
        ([], ""),
        ("ok", "ok"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        ([{"type": "text", "text": "a"}, IMAGE], [{"type": "text", "text": "a"}, IMAGE]),
        ([{"type": "tool_reference", "tool_name": "mcp__x"}], "The tool mcp__x can be called now."),
        ([{"type": "search_result", "title": "T", "source": "S", "content": [TEXT]}], "T\nS\n\na"),
        ([{"type": "document", "source": {"type": "text", "data": "hello"}}], "hello"),
        ([{"type": "block_of_tomorrow", "x": 1}], '[block_of_tomorrow: {"x": 1}]\n'),
    ],
)  # fmt: skip
def test_results_of_tools_stand_for_themselves(content, result) -> None:
    """Tool results become messages of their own before the user's text, whatever they contain."""
    block = {"type": "tool_result", "tool_use_id": "t", "content": content}
    said = messages("user", [{"type": "text", "text": "so"}, block])
    assert said[0] == {"role": "tool", "tool_call_id": "t", "content": result}
    assert said[1] == {"role": "user", "content": "so"}
    assert messages("user", [block]) == said[:1]


def test_an_assistants_turn_is_one_message() -> None:
    """Text, thinking and calls are one message; results of server tools become text, redacted blocks are dropped."""
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "x"}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        {"type": "text", "text": "so"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
    ]
    (said,) = messages("assistant", blocks)
    assert said["reasoning_content"] == "hm"
    assert said["content"].endswith("so")
    assert '"query": "x"' in said["content"]
    assert said["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


def test_tools_come_and_go_with_messages() -> None:
    """Tools that are added in mid-conversation, as by Claude Code, are offered from then on."""
    tools = MessageTools()
    tools.add([{"name": "f"}, {"type": "bash_20250124", "name": "bash"}, {"type": "web_search_20250305"}], "tools")
    assert messages("user", [{"type": "tool_addition", "tool": {"name": "g", "input_schema": {}}}], tools) == []
    messages("user", [{"type": "text", "text": "x"}, {"type": "tool_removal", "tool_name": "f"}], tools)
    assert list(tools.functions) == ["bash", "g"]
    assert "command" in tools.functions["bash"]["function"]["parameters"]["properties"]
    assert tools.functions["g"]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert tools.left_out == ["tools.web_search_20250305"]


def test_instructions_are_a_line_each() -> None:
    """Instructions may be a text, or blocks with cache marks; each block is a line."""
    blocks = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]
    assert instructions(blocks, "system") == "a\nb"
    assert instructions("a", "system") == "a"


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([7], "messages[0].content[0]"),
        ([{"type": "text"}], "messages[0].content[0]"),
        ([{"type": "tool_use", "id": "t"}], "messages[0].content[0]"),
        ([{"type": "tool_result", "content": [7]}], "messages[0].content[0].content[0]"),
    ],
)
def test_what_is_malformed_is_refused(content, param) -> None:
    """The error names the place of the malformed part."""
    with pytest.raises(Refusal) as caught:
        messages("user", content)
    assert caught.value.param == param
