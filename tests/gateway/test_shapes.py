"""Shaped answers: JSON, an expression, one of several texts, a tool call."""

from __future__ import annotations

import contextlib
import json
import re
import string
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.gateway.serving import GatewayProcess

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"NAME": {"enum": ["ADA", "BOB"]}, "AGE": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["NAME", "AGE"],
    "additionalProperties": False,
}
ONE = {"type": "object", "properties": {"A": {"enum": [1]}}}
# Two processes that compile, at their limits: without them, three schemas took several times as much.
MOST_BYTES = 1 << 30


def answer(http, **more):
    body = {"messages": HI, "temperature": 1.3, "max_tokens": 200, **more}
    response = http.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_follows_its_schema(http, seed) -> None:
    """A random model at high temperature writes what the schema allows, and then ends."""
    response_format = {"type": "json_schema", "json_schema": {"name": "who", "schema": SCHEMA, "strict": True}}
    choice = answer(http, response_format=response_format, seed=seed)
    person = json.loads(choice["message"]["content"])
    assert person["NAME"] in ("ADA", "BOB")
    assert 0 <= person["AGE"] <= 99
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("more", [{"guided_json": json.dumps(ONE)}, {"json_schema": ONE}, {}])
def test_properties_are_not_made_up(http, more) -> None:
    """Where a schema does not forbid further properties the answer has none, and ends."""
    schema = {"type": "object", "properties": {"A": {"enum": [1]}}, "required": ["A"]}
    more = more or {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}
    for seed in range(3):
        choice = answer(http, seed=seed, **more)
        assert json.loads(choice["message"]["content"]).keys() <= {"A"}
        assert choice["finish_reason"] == "stop"


def test_any_object_is_an_object(http) -> None:
    """json_object gives an object, or the beginning of one if it was cut."""
    choice = answer(http, response_format={"type": "json_object"}, max_tokens=300, seed=2)
    assert choice["message"]["content"].lstrip().startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)


@pytest.mark.parametrize("seed", range(3))
def test_an_expression_is_matched(http, seed) -> None:
    """guided_regex and structured_outputs give a text that matches."""
    for shape in ({"guided_regex": "[A-Z]{3}-[0-9]{2}"}, {"structured_outputs": {"regex": "[A-Z]{3}-[0-9]{2}"}}):
        choice = answer(http, seed=seed, **shape)
        assert re.fullmatch("[A-Z]{3}-[0-9]{2}", choice["message"]["content"])


def test_one_of_several_is_chosen(http) -> None:
    """Special characters of expressions are literal in a choice."""
    for seed in range(4):
        assert answer(http, guided_choice=["YES", "NO (.*)", "A B\n"], seed=seed)["message"]["content"] in (
            "YES",
            "NO (.*)",
            "A B\n",
        )


def tool(name, **properties):
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("weather", CITY={"enum": ["ROME", "OSLO"]}), tool("clock", ZONE={"enum": ["UTC"]})]


def test_a_named_tool_is_called(http) -> None:
    """A named tool is called with arguments that follow its schema."""
    choice = answer(http, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}})
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["CITY"] in ("ROME", "OSLO")
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None


def test_some_tool_is_called_where_one_must_be(http) -> None:
    """With `required` any tool is called, by its own schema."""
    for seed in range(3):
        choice = answer(http, tools=TOOLS, tool_choice="required", seed=seed)
        (call,) = choice["message"]["tool_calls"]
        known = {t["function"]["name"]: t["function"]["parameters"]["properties"] for t in TOOLS}
        assert json.loads(call["function"]["arguments"]).keys() == known[call["function"]["name"]].keys()


def test_the_models_own_way_of_calling_is_read(http) -> None:
    """A call between the template's tags is read, and text around it stays text, whole and streamed."""
    said = 'SO <tool_call>{"name": "weather", "arguments": {"CITY": "ROME"}}</tool_call>'
    choice = answer(http, tools=TOOLS, guided_choice=[said])
    (call,) = choice["message"]["tool_calls"]
    assert call["id"].startswith("call_")
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", {"CITY": "ROME"})
    assert choice["message"]["content"] == "SO "
    assert choice["finish_reason"] == "tool_calls"
    body = {"messages": HI, "tools": TOOLS, "guided_choice": [said], "stream": True, "max_tokens": 200}
    lines = http.post(CHAT, json=body).text.split("\n\n")
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", [])]
    assert [piece["index"] for piece in pieces] == [0] * len(pieces)
    assert sum("id" in piece for piece in pieces) == 1
    assert json.loads("".join(piece["function"]["arguments"] for piece in pieces)) == {"CITY": "ROME"}
    assert "".join(delta.get("content", "") for delta in deltas) == "SO "


def test_a_malformed_call_stays_text(http) -> None:
    """A malformed call is shown as it was written."""
    said = "<tool_call>NONSENSE</tool_call>"
    choice = answer(http, tools=TOOLS, guided_choice=[said])
    assert choice["message"]["content"] == said
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


def test_without_tools_tags_are_text(http) -> None:
    """Without tools, or with tool choice `none`, tags are plain text."""
    said = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        assert answer(http, guided_choice=[said], **more)["message"]["content"] == said


def test_one_call_is_all_where_no_more_are_wanted(http) -> None:
    """With parallel_tool_calls false the answer ends after its first call, whole and streamed."""
    call = '<tool_call>{"name": "weather", "arguments": {"CITY": "%s"}}</tool_call>'
    body = {"tools": TOOLS, "guided_choice": [call % "ROME" + "\n" + call % "OSLO"]}
    assert len(answer(http, **body)["message"]["tool_calls"]) == 2
    choice = answer(http, **body, parallel_tool_calls=False)
    (only,) = choice["message"]["tool_calls"]
    assert json.loads(only["function"]["arguments"]) == {"CITY": "ROME"}
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
    body |= {"messages": HI, "stream": True, "max_tokens": 200, "parallel_tool_calls": False}
    lines = http.post(CHAT, json=body).text.split("\n\n")
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    assert {piece["index"] for delta in deltas for piece in delta.get("tool_calls", [])} == {0}


def test_a_forced_function_without_parameters_gets_none(http) -> None:
    """The arguments of a forced function without parameters are an empty object, alone or among several."""
    tools = [{"type": "function", "function": {"name": "now"}}]
    (call,) = answer(http, tools=tools, tool_choice="required")["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {}
    tools.append({"type": "function", "function": {"name": "later", "parameters": {"type": "object"}}})
    (call,) = answer(http, tools=tools, tool_choice="required")["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {}


@pytest.mark.parametrize(
    "response_format",
    [{"type": "json_object", "schema": SCHEMA}, {"type": "json_schema", "schema": SCHEMA, "name": "who"}],
)
def test_a_schema_is_followed_wherever_it_stands(http, response_format) -> None:
    """A schema is followed in the request forms of llama.cpp, Together and the Responses API, too."""
    choice = answer(http, response_format=response_format, seed=5)
    assert json.loads(choice["message"]["content"])["NAME"] in ("ADA", "BOB")


def test_a_schema_that_cannot_be_followed_is_refused_by_name(http) -> None:
    """The refusal is 400 with the keyword, before anything runs."""
    body = {"messages": HI, "guided_json": {"type": "array", "uniqueItems": True}}
    refused = http.post(CHAT, json=body)
    assert refused.status_code == 400
    assert "uniqueItems is not supported" in refused.json()["error"]["message"]


def endless(num=20):
    """A schema whose compilation never ends."""
    return {"allOf": [{"type": "string", "pattern": f".*{letter}.*"} for letter in string.ascii_letters[:num]]}


def test_schemas_without_end_hold_up_nobody(served) -> None:
    """Endless schemas are refused; meanwhile others are answered, memory stays bounded, and SIGTERM works."""
    process = GatewayProcess(served.pipeline, served.addresses, ("--model-name", "tiny"))
    try:
        with httpx.Client(base_url=process.url, timeout=60) as http, ThreadPoolExecutor(4) as pool:
            assert answer(http, guided_choice=["YES"])["message"]["content"] == "YES"
            main = psutil.Process(process.process.pid)
            before = main.memory_info().rss
            body = {"messages": HI, "guided_json": endless(), "max_tokens": 4}
            bad = [pool.submit(httpx.post, f"{process.url}{CHAT}", json=body, timeout=120) for _ in range(3)]
            refused: list[httpx.Response] = []
            while len(refused) < 3:
                answer(http, max_tokens=2)
                assert http.post("/tokenize", json={"prompt": "A"}, timeout=5).status_code == 200
                of_all = [main, *main.children(recursive=True)]
                with contextlib.suppress(psutil.NoSuchProcess):
                    assert sum(one.memory_info().rss for one in of_all) - before < MOST_BYTES
                refused = [future.result() for future in bad if future.done()]
            assert {response.status_code for response in refused} <= {400, 503}
            assert any("takes too much time or memory" in response.text for response in refused)
            assert answer(http, guided_choice=["YES"])["message"]["content"] == "YES"
            pool.submit(httpx.post, f"{process.url}{CHAT}", json=body, timeout=120)
            assert process.stop() == 0
    finally:
        process.stop()
