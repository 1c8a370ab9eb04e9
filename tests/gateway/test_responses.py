"""The Responses API, through OpenAI's own client and byte by byte."""

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
    """An extra body that forces the model to answer this text."""
    return {"guided_choice": [text]}


def test_text_is_answered(client) -> None:
    """The answer has status, usage and the request's parameters."""
    response = client.responses.create(model=MODEL, input="hi", instructions="brief", extra_body=saying("HELLO"))
    assert response.output_text == "HELLO"
    assert response.status == "completed"
    assert response.instructions == "brief"
    assert response.usage.output_tokens == len("HELLO") + 1
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    cut = client.responses.create(model=MODEL, input="hi", max_output_tokens=3)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.output[0].status == "incomplete"


def test_a_stream_says_what_the_whole_answer_says(client) -> None:
    """The response that the client assembles from numbered events equals the whole answer."""
    with client.responses.stream(model=MODEL, input="hi", extra_body=saying("NO 世界")) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "NO 世界"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "NO 世界"


def test_tools_are_called_and_their_results_read(client) -> None:
    """Calls in the model's notation become items; their results are accepted with the whole history."""
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
    """The answer is parsed into a pydantic model."""
    response = client.responses.parse(
        model=MODEL, input="hi", text_format=Person, temperature=1.2, extra_body={"seed": 1}
    )
    assert isinstance(response.output_parsed, Person)


def test_the_prompt_is_the_chats(http) -> None:
    """The same history as items and as messages has the same prompt, reasoning and calls included."""
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
    response = http.post(PATH, json={"input": items, "instructions": "brief", "max_output_tokens": 1})
    assert response.status_code == 200, response.text
    assert (
        response.json()["usage"]["input_tokens"] == http.post("/tokenize", json={"messages": messages}).json()["count"]
    )


def test_tools_of_others_are_left_out(http) -> None:
    """Tools that OpenAI would run are ignored, and a header names them."""
    body = {"input": "hi", "tools": [{"type": "web_search"}, FUNCTION], "max_output_tokens": 1, "odd": 1}
    response = http.post(PATH, json=body)
    assert response.status_code == 200
    assert response.headers["X-Shardhub-Warning"] == "ignored unknown fields: 'odd', 'tools.web_search'"


def test_answers_are_kept(client, http) -> None:
    """An answer can be continued, shown and deleted; another key's, or a missing one, is an error."""
    first = client.responses.create(model=MODEL, input="hi", extra_body=saying("A"))
    then = client.responses.create(model=MODEL, input="so", previous_response_id=first.id, extra_body=saying("B"))
    whole = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "so"},
    ]
    assert then.previous_response_id == first.id
    assert then.usage.input_tokens == http.post("/tokenize", json={"messages": whole}).json()["count"]
    by_reference = [{"role": "user", "content": "hi"}, {"type": "item_reference", "id": first.output[0].id}, whole[2]]
    referred = client.responses.create(model=MODEL, input=by_reference, extra_body=saying("B"))
    assert referred.usage.input_tokens == then.usage.input_tokens
    assert client.responses.retrieve(then.id).output_text == "B"
    assert client.responses.input_items.list(then.id).data[0].content[0].text == "so"
    client.responses.delete(first.id)
    for name in (first.id, "resp_of_another"):
        with pytest.raises(openai.NotFoundError, match="not found"):
            client.responses.retrieve(name)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="so", previous_response_id=then.id)
    assert caught.value.code == "previous_response_not_found"
    unkept = client.responses.create(model=MODEL, input="hi", store=False, extra_body=saying("A"))
    assert unkept.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_tools_of_a_namespace_are_called(client) -> None:
    """A call has its name and its namespace in separate fields, streamed and whole."""
    tools = [{"type": "namespace", "name": "mcp__wx", "description": "", "tools": [FUNCTION]}]
    said = saying(TURN.replace('"TURN"', '"mcp__wx__TURN"'))
    events = client.responses.create(model=MODEL, input="hi", tools=tools, extra_body=said, stream=True)
    items = [event.item for event in events if event.type.startswith("response.output_item")]
    whole = client.responses.create(model=MODEL, input="hi", tools=tools, extra_body=said)
    for item in (*items, whole.output[0]):
        assert (item.type, item.name, item.namespace) == ("function_call", "TURN", "mcp__wx")


def test_a_custom_tool_is_called_with_a_text(client) -> None:
    """The events carry the text without the JSON that the model wrote around it."""
    tools = [{"type": "custom", "name": "TURN", "description": "x"}]
    text = '<tool_call>{"name": "TURN", "arguments": {"input": "NORTH BY"}}</tool_call>'
    with client.responses.stream(model=MODEL, input="hi", tools=tools, extra_body=saying(text)) as stream:
        events = list(stream)
        (item,) = stream.get_final_response().output
    assert (item.type, item.name, item.input) == ("custom_tool_call", "TURN", "NORTH BY")
    (done,) = [event for event in events if event.type == "response.custom_tool_call_input.done"]
    assert done.input == "NORTH BY"


def test_what_does_not_fit_is_cut_or_left_out(http) -> None:
    """A limit beyond the context is cut; with truncation `auto` the oldest turns are dropped."""
    cut_answer = http.post(PATH, json={"input": "hi", "max_output_tokens": 8 * CONTEXT, **saying("A")})
    assert cut_answer.status_code == 200, cut_answer.text
    assert f"max_output_tokens was reduced from {8 * CONTEXT} to " in cut_answer.headers["X-Shardhub-Warning"]
    turns = [{"role": "user", "content": f"{number} " * (CONTEXT // 4)} for number in range(4)]
    body = {"input": [*turns, {"role": "user", "content": "hi"}], "instructions": "brief", **saying("A")}
    refused = http.post(PATH, json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert f"maximum context length is {CONTEXT} tokens" in refused.json()["error"]["message"]
    shorter = http.post(PATH, json={**body, "truncation": "auto"})
    assert shorter.status_code == 200, shorter.text
    assert "left out" in shorter.headers["X-Shardhub-Warning"]
    counted = http.post(f"{PATH}/input_tokens", json={"input": "hi", "instructions": "brief"}).json()["input_tokens"]
    assert shorter.json()["usage"]["input_tokens"] > counted


BAD = {
    "nothing": ({}, 400, "input"),
    "no items": ({"input": []}, 400, "input"),
    "a number": ({"input": 7}, 400, "input"),
    "an item that is none": ({"input": ["hi"]}, 400, "input"),
    "no content": ({"input": [{"role": "user"}]}, 400, "input[0].content"),
    "something stored": ({"input": "hi", "previous_response_id": "resp_1"}, 400, "previous_response_id"),
    "nothing but a reference": ({"input": [{"type": "item_reference", "id": "x"}]}, 404, "input"),
    "a conversation": ({"input": "hi", "conversation": "conv_1"}, 400, "conversation"),
    "a prompt of OpenAI's": ({"input": "hi", "prompt": {"id": "p"}}, 400, "prompt"),
    "an unknown truncation": ({"input": "hi", "truncation": "some"}, 400, "truncation"),
    "a bad schema": (
        {"input": "hi", "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "wat"}}}},
        400,
        "text.format",
    ),
    "an unknown choice": ({"input": "hi", "tool_choice": "maybe"}, 400, "tool_choice"),
    "a tool without a name": ({"input": "hi", "tools": [{"type": "function"}]}, 400, "tools[0].name"),
    "another model": ({"input": "hi", "model": "gpt-5"}, 404, "model"),
    "more than the context": ({"input": "hi " * CONTEXT}, 400, "input"),
    "a call of nothing": ({"input": [{"type": "function_call", "call_id": "c"}]}, 400, "input[0]"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_are_refused(http, name, stream) -> None:
    """The error names the field of this API, also for a streaming request."""
    body, status, param = BAD[name]
    response = http.post(PATH, json={"max_output_tokens": 1, **body, "stream": stream})
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == param
