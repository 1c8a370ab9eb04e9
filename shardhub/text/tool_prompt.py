"""The tool prompt for chat templates that do not write tools: the tools, and the format of a call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

# The words that most models were trained on; small models follow them as well. Source: the templates of Qwen2.5 and
# Hermes 2 Pro. The format equals that of `shardhub.text.calls.call_text` for calls in the history.
TOOL_WORDS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def with_tools_described(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Add the tools to the end of a history's first system message, which is inserted if it is missing."""
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    words = TOOL_WORDS.format(signatures=signatures)
    first = messages[0] if messages else None
    if first is not None and first["role"] == "system" and isinstance(first.get("content"), str):
        return [{**first, "content": f"{first['content']}\n\n{words}".lstrip()}, *messages[1:]]
    return [{"role": "system", "content": words}, *messages]
