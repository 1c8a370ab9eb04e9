"""Tools in requests of the Responses API: how the model sees them, and which items their calls become."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from shardhub.gateway.refusals import Refusal

CallKind = Literal["function", "custom", "local_shell", "shell", "apply_patch", "tool_search"]

_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_.-]")
# The longest name a function may have in a chat request.
_MAX_NAME_CHARS = 128
# Joins the names of a namespace and its tool, as Codex did before it had namespaces.
_JOINT = "__"
_TEXT = {"type": "string"}
_INTEGER = {"type": "integer"}
_TEXTS = {"type": "array", "items": _TEXT}

# Descriptions and parameters that OpenAI's models were trained on. The arguments are fields of `action` or `operation`.
_BUILT_IN: dict[str, tuple[CallKind, str, dict[str, Any], list[str]]] = {
    "local_shell": (
        "local_shell",
        "Runs a command on the user's machine and gives its output.",
        {"command": _TEXTS, "working_directory": _TEXT, "timeout_ms": _INTEGER},
        ["command"],
    ),
    "shell": (
        "shell",
        "Runs shell commands on the user's machine and gives their output.",
        {"commands": _TEXTS, "timeout_ms": _INTEGER, "max_output_length": _INTEGER},
        ["commands"],
    ),
    "apply_patch": (
        "apply_patch",
        "Creates, changes or deletes a file by a diff in the V4A format: lines that begin with a blank, + or -.",
        {
            "type": {"type": "string", "enum": ["create_file", "update_file", "delete_file"]},
            "path": _TEXT,
            "diff": _TEXT,
        },
        ["type", "path"],
    ),
}
_BY_ITEM = {"local_shell_call": "local_shell", "shell_call": "shell", "apply_patch_call": "apply_patch"}
_SEARCH_PARAMETERS = {"type": "object", "properties": {"query": _TEXT}, "required": ["query"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedTool:
    """A tool as the client offered it.

    Attributes:
        shown: The name that the model sees.
        kind: The kind of its calls.
        name: The client's name for it.
        namespace: The namespace it belongs to, if any.
        description, parameters, strict: The definition that the model sees.
    """

    shown: str
    kind: CallKind
    name: str
    namespace: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def function(self) -> dict[str, Any]:
        """The tool as a tool of a chat request."""
        fields: dict[str, Any] = {"name": self.shown, "description": self.description, "parameters": self.parameters}
        if self.strict is not None:
            fields["strict"] = self.strict
        return {"type": "function", "function": {key: value for key, value in fields.items() if value is not None}}


@dataclass(slots=True)
class Toolbox:
    """The tools of one request: those in its `tools`, and those that its items bring.

    Attributes:
        tools: The tools by the names that the model sees.
        left_out: Names of the tools that cannot be called here, for the warning header.
    """

    tools: dict[str, OfferedTool] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, offered: Iterable[Any], where: str, *, namespace: str | None = None) -> None:
        """Add tools. A tool whose name is already known is left as it is.

        Args:
            where: The field that holds them.
            namespace: The namespace they belong to.

        Raises:
            Refusal: A tool is malformed.
        """
        for index, tool in enumerate(offered):
            place = f"{where}[{index}]"
            if not isinstance(tool, dict):
                raise Refusal(400, f"{place} must be an object.", param=place)
            kind = str(tool.get("type") or "function")
            if kind == "namespace":
                inner = tool.get("tools")
                self.add(
                    inner if isinstance(inner, list) else (), f"{place}.tools", namespace=str(tool.get("name") or "")
                )
            elif kind == "function":
                function = tool["function"] if isinstance(tool.get("function"), dict) else tool
                self._put(_function(function, self._name(function, place), namespace, kind="function"))
            elif kind == "custom":
                custom = tool["custom"] if isinstance(tool.get("custom"), dict) else tool
                self._put(_custom(custom, self._name(custom, place), namespace))
            elif kind == "tool_search" and tool.get("execution") == "client":
                search = {"parameters": _SEARCH_PARAMETERS, **{k: v for k, v in tool.items() if v is not None}}
                self._put(_function(search, "tool_search", namespace, kind="tool_search"))
            elif kind in _BUILT_IN:
                self._put(_built_in(kind))
            elif f"tools.{kind}" not in self.left_out:
                self.left_out.append(f"tools.{kind[:40]}")

    def functions(self) -> list[dict[str, Any]]:
        """All tools as tools of a chat request."""
        return [tool.function() for tool in self.tools.values()]

    def shown_name(self, name: str, namespace: str | None = None) -> str:
        """The name that the model sees for a tool of an earlier call, whether or not it is offered now."""
        return joined(namespace, name)

    def find(self, called: str) -> OfferedTool:
        """The tool that a model's call names: by its exact name, or by a short name that only one tool has."""
        if called in self.tools:
            return self.tools[called]
        joint = called.replace(".", _JOINT, 1)
        alike = [tool for tool in self.tools.values() if tool.shown == joint or tool.name == called]
        return alike[0] if len(alike) == 1 else OfferedTool(shown=called, kind="function", name=called)

    def choose(self, chosen: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        """Convert `tool_choice` to a chat request's. Tools that it does not allow are removed.

        Raises:
            Refusal: `tool_choice` names a tool that cannot be called here.
        """
        if not isinstance(chosen, dict):
            return chosen
        kind = chosen.get("type")
        if kind == "allowed_tools":
            choice = chosen["allowed_tools"] if isinstance(chosen.get("allowed_tools"), dict) else chosen
            mode, allowed = choice.get("mode", "auto"), choice.get("tools")
            if mode not in ("auto", "required") or not isinstance(allowed, list):
                raise Refusal(400, "allowed_tools must have a mode and tools.", param="tool_choice")
            names = {name for entry in allowed if (name := self._named(entry)) is not None}
            self.tools = {name: tool for name, tool in self.tools.items() if name in names}
            return str(mode) if self.tools else "none"
        name = self._named(chosen)
        if name is None or name not in self.tools:
            raise Refusal(
                400, f"tool_choice names a tool that this request does not have: {_brief(chosen)}.", param="tool_choice"
            )
        return {"type": "function", "function": {"name": name}}

    def _named(self, entry: Any) -> str | None:
        """The name that the model sees for a tool that a choice names."""
        if not isinstance(entry, dict):
            return None
        kind, name = str(entry.get("type")), entry.get("name")
        if kind in _BUILT_IN or kind == "tool_search":
            return kind
        if kind == "mcp":
            namespace = entry.get("server_label")
            return joined(f"mcp__{namespace}", str(name)) if name else None
        inner = entry.get(kind)
        name = inner.get("name") if isinstance(inner, dict) else name
        if kind not in ("function", "custom") or not isinstance(name, str):
            return None
        full = joined(entry.get("namespace"), name)
        return full if full in self.tools else self.find(name).shown

    def _put(self, tool: OfferedTool) -> None:
        self.tools.setdefault(tool.shown, tool)

    @staticmethod
    def _name(tool: dict[str, Any], place: str) -> str:
        name = tool.get("name")
        if not isinstance(name, str) or not name:
            raise Refusal(400, f"{place} must have a name.", param=f"{place}.name")
        return name


def joined(namespace: str | None, name: str) -> str:
    """The name that the model sees for a tool of a namespace: `mcp__server__tool`, as in older versions of Codex."""
    if namespace:
        joint = "" if namespace.endswith(_JOINT) else _JOINT
        return _NOT_IN_NAMES.sub("_", f"{namespace}{joint}{name}")[:_MAX_NAME_CHARS]
    return name


def built_in_name(item_type: str) -> str | None:
    """The built-in tool whose calls are items of this type, or None; the client runs it."""
    return _BY_ITEM.get(item_type)


def custom_input(arguments: str) -> str:
    """The input of a custom tool's call; the raw arguments if they are not an object with `input`."""
    try:
        read = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    text = read.get("input") if isinstance(read, dict) else read
    return text if isinstance(text, str) else arguments


def _function(tool: dict[str, Any], name: str, namespace: str | None, *, kind: CallKind) -> OfferedTool:
    parameters = tool.get("parameters")
    return OfferedTool(
        shown=joined(namespace, name),
        kind=kind,
        name=name,
        namespace=namespace,
        description=tool["description"] if isinstance(tool.get("description"), str) else None,
        parameters=parameters if isinstance(parameters, dict) else None,
        strict=tool["strict"] if isinstance(tool.get("strict"), bool) else None,
    )


def _custom(tool: dict[str, Any], name: str, namespace: str | None) -> OfferedTool:
    """A tool that takes one text: the model sees a function with one argument."""
    form = tool.get("format") if isinstance(tool.get("format"), dict) else {}
    assert isinstance(form, dict)
    form = form["grammar"] if isinstance(form.get("grammar"), dict) else form
    about = {"type": "string", "description": "The whole input, as plain text."}
    if isinstance(form.get("definition"), str):
        about["description"] = (
            f"The whole input. It follows this {form.get('syntax', '')} grammar:\n{form['definition']}"
        )
    return OfferedTool(
        shown=joined(namespace, name),
        kind="custom",
        name=name,
        namespace=namespace,
        description=tool["description"] if isinstance(tool.get("description"), str) else None,
        parameters={"type": "object", "properties": {"input": about}, "required": ["input"]},
    )


def _built_in(name: str) -> OfferedTool:
    kind, description, properties, required = _BUILT_IN[name]
    parameters = {"type": "object", "properties": properties, "required": required}
    return OfferedTool(shown=name, kind=kind, name=name, description=description, parameters=parameters)


def _brief(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:200]
