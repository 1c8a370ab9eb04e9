"""OpenAI's newer API, by its own client and byte by byte."""

from __future__ import annotations

import json

import openai
import pydantic
import pytest

from tests.gateway.conftest import CONTEXT
from tests.gateway.test_streaming import TOOL, TURN

PATH = "/v1/responses"
MODEL = "tiny"
FUNCTION = {"type": "function", **TOOL["function"]}


@pytest.fixture(scope="module")
def client(gateway):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none-needed", max_retries=0) as made:
        yield made


def saying(text):
    """An extra body that leaves the model no other choice."""
    return {"guided_choice": [text]}


def test_text_is_answered(client) -> None:
    """With status, usage and what was asked."""
    found = client.responses.create(model=MODEL, input="hi", instructions="brief", extra_body=saying("HELLO"))
    assert found.output_text == "HELLO"
    assert found.status == "completed"
    assert found.instructions == "brief"
    assert found.usage.output_tokens == len("HELLO") + 1
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    cut = client.responses.create(model=MODEL, input="hi", max_output_tokens=3)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.output[0].status == "incomplete"


def test_a_stream_says_what_the_whole_answer_says(client) -> None:
    """The client puts the response together from numbered events."""
    with client.responses.stream(model=MODEL, input="hi", extra_body=saying("NO 世界")) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "NO 世界"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "NO 世界"


def test_tools_are_called_and_their_results_read(client) -> None:
    """The model's own way of calling becomes items; what they gave is sent back with the whole history."""
    with client.responses.stream(model=MODEL, input="hi", tools=[FUNCTION], extra_body=saying(f"NOW{TURN}")) as stream:
        for _ in stream:
            pass
        text, call = stream.get_final_response().output
    assert text.content[0].text == "NOW"
    assert (call.type, call.name, json.loads(call.arguments)["AT"]) == ("function_call", "TURN", 7)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    history = [{"role": "user", "content": "hi"}, text.model_dump(), call.model_dump(), result]
    after = client.responses.create(model=MODEL, input=history, tools=[FUNCTION], extra_body=saying("OK"))
    assert after.output_text == "OK"
    forced = client.responses.create(
        model=MODEL, input="hi", tools=[FUNCTION], tool_choice={"type": "function", "name": "TURN"}, max_output_tokens=9
    )
    assert forced.output[0].name == "TURN"


class Person(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    NAME: str = pydantic.Field(pattern="^[A-Z]{2,6}$")


def test_a_schema_is_followed(client) -> None:
    """A pydantic model comes back as one."""
    found = client.responses.parse(model=MODEL, input="hi", text_format=Person, temperature=1.2, extra_body={"seed": 1})
    assert isinstance(found.output_parsed, Person)


def test_the_prompt_is_the_chats(http) -> None:
    """The same history as items and as messages has the same tokens, reasoning and calls included."""
    call = {"name": "f", "arguments": '{"a": 1}'}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "so"}]},
        {"type": "function_call", "call_id": "c", **call},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "2"}]},
    ]
    calls = [{"id": "c", "type": "function", "function": call}]
    messages = [
        {"role": "system", "content": "brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "so", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c", "content": "2"},
    ]
    found = http.post(PATH, json={"input": items, "instructions": "brief", "max_output_tokens": 1})
    assert found.status_code == 200, found.text
    assert found.json()["usage"]["input_tokens"] == http.post("/tokenize", json={"messages": messages}).json()["count"]


def test_tools_of_others_are_left_out(http) -> None:
    """Agents offer what OpenAI would run itself; a header says what was ignored."""
    body = {"input": "hi", "tools": [{"type": "web_search"}, FUNCTION], "max_output_tokens": 1, "odd": 1}
    found = http.post(PATH, json=body)
    assert found.status_code == 200
    assert found.headers["X-Shardhub-Warning"] == "ignored unknown fields: 'odd', 'tools.web_search'"


BAD = {
    "nothing": ({}, 400, "input"),
    "no items": ({"input": []}, 400, "input"),
    "a number": ({"input": 7}, 400, "input"),
    "an item that is none": ({"input": ["hi"]}, 400, "input"),
    "an unknown role": ({"input": [{"role": "wizard", "content": "hi"}]}, 400, "input.0.role"),
    "no content": ({"input": [{"role": "user"}]}, 400, "input[0].content"),
    "an image": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x/y"}]}]},
        400,
        "input[0].content[0]",
    ),
    "something stored": ({"input": "hi", "previous_response_id": "resp_1"}, 400, "previous_response_id"),
    "a reference": ({"input": [{"type": "item_reference", "id": "x"}]}, 400, "input[0]"),
    "work for later": ({"input": "hi", "background": True}, 400, "background"),
    "a bad schema": (
        {"input": "hi", "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "wat"}}}},
        400,
        "text.format",
    ),
    "an unknown choice": ({"input": "hi", "tool_choice": "maybe"}, 400, "tool_choice"),
    "a tool without a name": ({"input": "hi", "tools": [{"type": "function"}]}, 400, "tools.0.function.name"),
    "another model": ({"input": "hi", "model": "gpt-5"}, 404, "model"),
    "more than the context": ({"input": "hi", "max_output_tokens": CONTEXT}, 400, "max_output_tokens"),
    "a call of nothing": ({"input": [{"type": "function_call", "call_id": "c"}]}, 400, "input[0]"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_are_refused(http, name, stream) -> None:
    """With the field as this API calls it, also where a stream was asked for."""
    body, status, param = BAD[name]
    found = http.post(PATH, json={"max_output_tokens": 1, **body, "stream": stream})
    assert found.status_code == status, found.text
    assert found.json()["error"]["param"] == param
