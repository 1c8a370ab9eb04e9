"""Tools of the Responses API: their form for the model, and the items that its calls become."""

from __future__ import annotations

import pytest

from shardhub.gateway.blocks import Block
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.response_calls import call_item
from shardhub.gateway.response_tools import Toolbox

GO = {"type": "function", "name": "go", "parameters": {"type": "object"}}
PATCH = {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"}}


def toolbox(*tools):
    box = Toolbox()
    box.add(tools, "tools")
    return box


def item(box, name, arguments):
    block = Block(index=0, kind="call", call_id="call_1", name=name, text=arguments)
    return call_item(block, box.find(name))


@pytest.mark.parametrize("namespace", ["mcp__wx", "mcp__wx__"])
@pytest.mark.parametrize("said", ["mcp__wx__go", "mcp__wx.go", "go"])
def test_a_call_tells_its_namespace_apart(namespace, said) -> None:
    """However the model joins namespace and name, the item has both: Codex needs them for an MCP server's tool."""
    box = toolbox({"type": "namespace", "name": namespace, "tools": [GO]}, {**GO, "name": "other"})
    assert [tool["function"]["name"] for tool in box.functions()] == ["mcp__wx__go", "other"]
    if namespace == "mcp__wx__" and "." in said:
        said = "mcp__wx__go"
    call = item(box, said, '{"a": 1}')
    assert call == {
        "type": "function_call",
        "call_id": "call_1",
        "name": "go",
        "namespace": namespace,
        "arguments": '{"a": 1}',
    }


def test_a_custom_tool_takes_a_text() -> None:
    """A custom tool is a function with one argument, whose text the client gets unchanged."""
    box = toolbox(PATCH)
    (function,) = box.functions()
    assert "start: x" in function["function"]["parameters"]["properties"]["input"]["description"]
    call = item(box, "patch", '{"input": "*** Begin"}')
    assert (call["type"], call["input"]) == ("custom_tool_call", "*** Begin")
    assert item(box, "patch", "*** Begin")["input"] == "*** Begin"


def test_tools_that_run_at_the_client_have_items_of_their_own() -> None:
    """Calls of shells and patches have their own items, with OpenAI's fields."""
    box = toolbox({"type": "local_shell"}, {"type": "shell"}, {"type": "apply_patch"})
    assert item(box, "local_shell", '{"command": ["ls"]}')["action"]["command"] == ["ls"]
    assert item(box, "local_shell", '{"command": "ls"}')["action"]["command"] == ["bash", "-lc", "ls"]
    assert item(box, "shell", '{"commands": ["ls"]}')["action"]["commands"] == ["ls"]
    operation = item(box, "apply_patch", '{"type": "delete_file", "path": "a"}')["operation"]
    assert operation == {"type": "delete_file", "path": "a"}
    assert item(box, "shell", '{"comm')["action"]["commands"] == []


def test_tools_of_openais_servers_are_left_out() -> None:
    """Tools that OpenAI's servers run are left out and named once."""
    box = toolbox({"type": "web_search"}, {"type": "web_search"}, {"type": "mcp", "server_label": "x"}, GO)
    assert box.left_out == ["tools.web_search", "tools.mcp"]
    assert list(box.tools) == ["go"]


@pytest.mark.parametrize(
    ("choice", "expected", "left"),
    [
        (None, None, ["go", "patch", "n__go"]),
        ("required", "required", ["go", "patch", "n__go"]),
        ({"type": "function", "name": "go"}, "go", ["go", "patch", "n__go"]),
        ({"type": "function", "namespace": "n", "name": "go"}, "n__go", ["go", "patch", "n__go"]),
        ({"type": "custom", "name": "patch"}, "patch", ["go", "patch", "n__go"]),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "patch"}]},
         "required", ["patch"]),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}, "none", []),
    ],
)  # fmt: skip
def test_a_choice_is_of_the_tools_there_are(choice, expected, left) -> None:
    """A choice of one tool by name, or of several, restricts the calls."""
    box = toolbox(GO, PATCH, {"type": "namespace", "name": "n", "tools": [GO]})
    chosen = box.choose(choice)
    assert (chosen["function"]["name"] if isinstance(chosen, dict) else chosen) == expected
    assert list(box.tools) == left


@pytest.mark.parametrize(
    "choice", [{"type": "web_search"}, {"type": "function", "name": "none"}, {"type": "allowed_tools"}]
)
def test_a_choice_of_what_cannot_be_called_is_refused(choice) -> None:
    """A choice of a missing tool is refused, since ignoring it would change the answer."""
    with pytest.raises(Refusal):
        toolbox(GO).choose(choice)
