"""Items of the Responses API as messages of a chat."""

from __future__ import annotations

import json

import pytest

from shardhub.gateway.refusals import Refusal
from shardhub.gateway.response_history import history_of
from shardhub.gateway.response_tools import Toolbox

USER = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}


def messages(*items, stored=None):
    """The messages that items become."""
    return history_of(list(items), Toolbox(), stored=stored or {}).messages


def called(name, arguments, identity="c"):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": identity, "type": "function", "function": function}


CALLS = {
    "a function": (
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
        called("f", {"a": 1}),
    ),
    "a function of a namespace": (
        {"type": "function_call", "call_id": "c", "namespace": "mcp__x", "name": "go", "arguments": "{}"},
        called("mcp__x__go", {}),
    ),
    "a custom tool": (
        {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "*** Begin"},
        called("patch", {"input": "*** Begin"}),
    ),
    "a local shell": (
        {"type": "local_shell_call", "call_id": "c", "action": {"type": "exec", "command": ["ls"], "env": {}}},
        called("local_shell", {"command": ["ls"]}),
    ),
    "a shell": (
        {"type": "shell_call", "call_id": "c", "action": {"commands": ["ls"]}},
        called("shell", {"commands": ["ls"]}),
    ),
    "a patch": (
        {"type": "apply_patch_call", "call_id": "c", "operation": {"type": "delete_file", "path": "a"}},
        called("apply_patch", {"type": "delete_file", "path": "a"}),
    ),
    "a search for tools": (
        {"type": "tool_search_call", "call_id": "c", "arguments": {"query": "x"}},
        called("tool_search", {"query": "x"}),
    ),
    "a computer": (
        {"type": "computer_call", "call_id": "c", "action": {"type": "screenshot"}},
        called("computer", {"type": "screenshot"}),
    ),
    "a kind of tomorrow": (
        {"type": "robot_call", "call_id": "c", "action": {"leg": 2}},
        called("robot", {"leg": 2}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls_and_their_results_are_turns(name) -> None:
    """Calls of any kind become an assistant's call and a tool's message."""
    item, call = CALLS[name]
    output = {
        "type": f"{item['type']}_output".replace("tool_search_call_", "tool_search_"),
        "call_id": "c",
        "output": "ok",
    }
    said = messages(USER, item, output)
    assert said[1] == {"role": "assistant", "content": None, "tool_calls": [call]}
    assert (said[2]["role"], said[2]["tool_call_id"]) == ("tool", "c")


@pytest.mark.parametrize(
    ("output", "content"),
    [
        ("ok", "ok"),
        (None, ""),
        ([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}], "ab"),
        ([{"type": "input_text", "text": "a"}, IMAGE], [{"type": "text", "text": "a"}, IMAGE]),
        ({"content": "ok", "success": True}, "ok"),
        ([{"stdout": "a", "stderr": ""}], '[{"stdout": "a", "stderr": ""}]'),
        ({"type": "computer_screenshot", "image_url": "x"}, [{"type": "computer_screenshot", "image_url": "x"}]),
        (7, "7"),
    ],
)
def test_results_come_in_any_form(output, content) -> None:
    """A text stays one, other parts stay as they are, and other values are written out."""
    call, _ = CALLS["a function"]
    assert (
        messages(USER, call, {"type": "function_call_output", "call_id": "c", "output": output})[-1]["content"]
        == content
    )


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (
            {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"type": "search", "query": "x"}},
            '[web_search_call: {"action": {"type": "search", "query": "x"}}]',
        ),
        ({"type": "mcp_call", "name": "go", "arguments": "{}", "output": "5"}, None),
        (
            {"type": "image_generation_call", "result": "A" * 100_000},
            '[image_generation_call: {"result": "(left out)"}]',
        ),
        ({"type": "compaction", "encrypted_content": "x"}, "[compaction]"),
        ({"type": "thought_of_tomorrow", "text": "hm"}, '[thought_of_tomorrow: {"text": "hm"}]'),
    ],
)
def test_what_no_chat_has_is_carried_as_text(item, text) -> None:
    """Items without a counterpart in chats become text that the model can read."""
    said = messages(USER, item, USER)
    assert [message["role"] for message in said] == ["user", "assistant", "user"]
    assert text is None or said[1]["content"] == text


def test_reasoning_goes_to_what_follows() -> None:
    """Reasoning, or else its summary, is attached to the following text or call; at the end it is dropped."""
    summary = {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "hm"}], "content": None}
    answer = {"type": "message", "role": "assistant", "content": "so"}
    call, _ = CALLS["a function"]
    assert messages(USER, summary, answer)[1] == {"role": "assistant", "content": "so", "reasoning_content": "hm"}
    assert messages(USER, summary, call)[1]["reasoning_content"] == "hm"
    assert messages(USER, answer, summary, call)[1]["reasoning_content"] == "hm"
    assert messages(USER, summary) == [{"role": "user", "content": "hi"}]
    empty = {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "x"}
    assert messages(USER, empty, answer)[1] == {"role": "assistant", "content": "so"}


def test_tools_that_come_with_items_are_offered() -> None:
    """Tools that items bring are offered, as Codex sends them at the first turn and as search results."""
    toolbox = Toolbox()
    tool = {"type": "function", "name": "go", "parameters": {"type": "object"}}
    items = [
        {
            "type": "additional_tools",
            "role": "developer",
            "tools": [{"type": "namespace", "name": "n", "tools": [tool]}],
        },
        {"type": "tool_search_output", "call_id": "s", "tools": [{**tool, "name": "found"}]},
    ]
    assert [message["role"] for message in history_of(items, toolbox).messages] == ["tool"]
    assert list(toolbox.tools) == ["n__go", "found"]


def test_references_are_items_that_are_kept() -> None:
    """A reference becomes the stored item; a lost one is reported to model and client; its type may be missing."""
    kept = {"type": "message", "role": "assistant", "content": "so"}
    assert messages(USER, {"id": "msg_1"}, stored={"msg_1": kept})[1] == {"role": "assistant", "content": "so"}
    history = history_of([USER, {"type": "item_reference", "id": "msg_2"}, USER], Toolbox())
    assert history.lost == ["msg_2"]
    assert "not kept" in history.messages[1]["content"]
    assert history_of([USER, {"type": "item_reference", "id": "rs_2"}], Toolbox()).messages == messages(USER)


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"role": "user"}, "input[0].content"),
        ({"role": "user", "content": 7}, "input[0].content"),
        ({"type": "function_call", "call_id": "c"}, "input[0]"),
    ],
)
def test_what_is_malformed_is_refused(item, param) -> None:
    """The error names the place of the malformed item."""
    with pytest.raises(Refusal) as caught:
        messages(item)
    assert caught.value.param == param
