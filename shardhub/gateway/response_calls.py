"""Tool calls as items of the Responses API. Each kind of tool has its own type of item."""

from __future__ import annotations

from typing import Any

from shardhub.gateway.blocks import Block
from shardhub.gateway.response_tools import CallKind, OfferedTool, custom_input
from shardhub.gateway.toolcalls import read_arguments

_TYPES: dict[CallKind, str] = {
    "function": "function_call",
    "custom": "custom_tool_call",
    "local_shell": "local_shell_call",
    "shell": "shell_call",
    "apply_patch": "apply_patch_call",
    "tool_search": "tool_search_call",
}
_PREFIXES: dict[CallKind, str] = {
    "function": "fc",
    "custom": "ctc",
    "local_shell": "lsh",
    "shell": "sh",
    "apply_patch": "apc",
    "tool_search": "tsc",
}


def call_prefix(tool: OfferedTool) -> str:
    """The prefix of the ids of a tool's calls."""
    return _PREFIXES[tool.kind]


def call_item(block: Block, tool: OfferedTool) -> dict[str, Any]:
    """The item of a call as far as it is written, without id and status.

    Args:
        block: The call; its arguments may be incomplete.
        tool: The tool that is called.
    """
    item: dict[str, Any] = {"type": _TYPES[tool.kind], "call_id": block.call_id}
    if tool.kind in ("function", "custom"):
        item["name"] = tool.name
        if tool.namespace is not None:
            item["namespace"] = tool.namespace
        written = {"arguments": block.text} if tool.kind == "function" else {"input": custom_input(block.text)}
        return {**item, **written}
    arguments = read_arguments(block.text)
    if tool.kind == "tool_search":
        return {**item, "execution": "client", "arguments": arguments}
    if tool.kind == "apply_patch":
        return {**item, "operation": arguments}
    if tool.kind == "shell":
        commands = arguments.get("commands")
        action = {
            "commands": [commands] if isinstance(commands, str) else commands or [],
            "timeout_ms": arguments.get("timeout_ms"),
            "max_output_length": arguments.get("max_output_length"),
        }
        return {**item, "action": action, "environment": None}
    command = arguments.get("command")
    action = {
        "type": "exec",
        "command": ["bash", "-lc", command] if isinstance(command, str) else command or [],
        "env": {},
        "timeout_ms": arguments.get("timeout_ms"),
        "working_directory": arguments.get("working_directory"),
    }
    return {**item, "action": action}
