"""langchain-openai against a gateway that runs: an answer, a stream with usage, a tool, and a structured answer.

    pip install langchain-openai                   # in an environment of its own
    python benchmarks/gateway_langchain.py http://127.0.0.1:8080 [--key KEY]

Imports nothing of shardhub's. Exits with 1, and says where, if the client reads something else than what was asked for.
"""

from __future__ import annotations

import argparse
import json
import urllib.request

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field


class Place(BaseModel):
    """A place."""

    model_config = ConfigDict(extra="forbid")

    city: str = Field(pattern="^[A-Z][a-z]{2,12}$")
    is_capital: bool


@tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"It rains in {city}."


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--key", default="none-needed")
    options = parser.parse_args()
    asked = urllib.request.Request(f"{options.url}/v1/models", headers={"Authorization": f"Bearer {options.key}"})
    with urllib.request.urlopen(asked) as answer:
        name = json.load(answer)["data"][0]["id"]
    settings = {"model": name, "base_url": f"{options.url}/v1", "api_key": options.key, "max_retries": 0}
    model = ChatOpenAI(**settings, temperature=0, max_tokens=24)

    whole = model.invoke("Say hello.")
    _check(bool(whole.content) and whole.usage_metadata["output_tokens"] > 0, "an answer", whole)

    parts = list(model.stream("Say hello.", stream_usage=True))
    streamed = parts[0]
    for part in parts[1:]:
        streamed += part
    _check(streamed.content == whole.content, "a stream", streamed)
    _check(streamed.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"], "its usage", streamed)

    caller = ChatOpenAI(**settings, temperature=0, max_tokens=64).bind_tools([weather], tool_choice="weather")
    called = caller.invoke("What is the weather in Rome?")
    _check([call["name"] for call in called.tool_calls] == ["weather"], "a call of a tool", called)
    (call,) = called.tool_calls
    history = [
        HumanMessage("What is the weather in Rome?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]),
    ]
    _check(bool(model.invoke(history).content), "an answer after a tool's result", history)

    shaped = ChatOpenAI(**settings, temperature=0, max_tokens=64).with_structured_output(Place, method="json_schema")
    place = shaped.invoke("Tell me a place.")
    _check(isinstance(place, Place), "a structured answer", place)

    items = ChatOpenAI(**settings, max_tokens=24, use_responses_api=True).invoke("Say hello.")
    _check(bool(items.text), "an answer of the newer API", items)
    print(json.dumps({"model": name, "passed": ["answer", "stream", "usage", "tool", "structured", "responses"]}))


def _check(is_right: bool, what: str, value: object) -> None:
    if not is_right:
        raise SystemExit(f"{what} is not as it must be: {value!r}")


if __name__ == "__main__":
    main()
