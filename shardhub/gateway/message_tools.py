"""Tools in requests of Anthropic's API: the client's own, and Anthropic's tools that the client runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from shardhub.gateway.refusals import Refusal

_TEXT = {"type": "string"}
_INTEGER = {"type": "integer"}
_EDITS: dict[str, Any] = {
    "path": _TEXT,
    "file_text": _TEXT,
    "old_str": _TEXT,
    "new_str": _TEXT,
    "insert_line": _INTEGER,
    "insert_text": _TEXT,
    "view_range": {"type": "array", "items": _INTEGER},
}
# By the type without its final date: the description and parameters that Anthropic's models were trained on.
_BUILT_IN: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "bash_": (
        "Runs a command in a shell on the user's machine that stays open, and gives its output.",
        {"command": _TEXT, "restart": {"type": "boolean"}},
        [],
    ),
    "text_editor_": (
        "Shows, creates and edits files on the user's machine.",
        {"command": {"type": "string", "enum": ["view", "create", "str_replace", "insert"]}, **_EDITS},
        ["command", "path"],
    ),
    "memory_": (
        "Keeps notes in files under /memories that stay beyond this conversation.",
        {
            "command": {"type": "string", "enum": ["view", "create", "str_replace", "insert", "delete", "rename"]},
            **_EDITS,
            "old_path": _TEXT,
            "new_path": _TEXT,
        },
        ["command"],
    ),
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_NOTHING: dict[str, Any] = {"type": "object", "properties": {}}


@dataclass(slots=True)
class MessageTools:
    """The tools of one request: those in its `tools`, and those that its messages bring.

    Attributes:
        functions: The tools as tools of a chat request, by name.
        left_out: Paths of the tools that cannot be called here, for the warning header.
    """

    functions: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, offered: Iterable[Any], where: str) -> None:
        """Add tools. A tool whose name is already known is left as it is.

        Raises:
            Refusal: A tool is malformed.
        """
        for index, tool in enumerate(offered):
            place = f"{where}[{index}]"
            if not isinstance(tool, dict):
                raise Refusal(400, f"{place} must be an object.", param=place)
            kind = tool.get("type") or "custom"
            name = tool.get("name")
            built_in = next((form for start, form in _BUILT_IN.items() if str(kind).startswith(start)), None)
            if kind == "custom" or isinstance(tool.get("input_schema"), dict):
                function = {"name": name, "parameters": _schema(tool.get("input_schema"))}
                if isinstance(tool.get("description"), str):
                    function["description"] = tool["description"]
            elif built_in is not None:
                description, properties, required = built_in
                parameters = {"type": "object", "properties": properties, "required": required}
                name = name or str(kind).rpartition("_")[0]
                function = {"name": name, "description": description, "parameters": parameters}
            else:
                if f"tools.{kind}" not in self.left_out:
                    self.left_out.append(f"tools.{str(kind)[:40]}")
                continue
            self.functions.setdefault(str(name), {"type": "function", "function": function})

    def remove(self, name: str) -> None:
        """Remove a tool from those offered."""
        self.functions.pop(name, None)


def choice_of(choice: dict[str, Any] | str | None) -> str | dict[str, Any] | None:
    """Convert `tool_choice` to a chat request's.

    Raises:
        Refusal: Its type is unknown.
    """
    if choice is None:
        return None
    kind = choice if isinstance(choice, str) else choice.get("type")
    if kind == "tool" and isinstance(choice, dict):
        return {"type": "function", "function": {"name": choice.get("name")}}
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise Refusal(400, "tool_choice must be of type auto, any, tool or none.", param="tool_choice")
    return _CHOICES[kind]


def _schema(schema: Any) -> dict[str, Any]:
    """A schema of arguments, completed to describe an object."""
    if not isinstance(schema, dict) or not schema:
        return dict(_NOTHING)
    return schema if "type" in schema else {"type": "object", **schema}
