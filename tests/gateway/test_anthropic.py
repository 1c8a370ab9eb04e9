"""Anthropic's API, through its own client."""

from __future__ import annotations

import re

import pytest

from tests.gateway.conftest import CONTEXT
from tests.gateway.test_streaming import TOOL, TURN

PATH = "/v1/messages"
MODEL = "tiny"
HI = [{"role": "user", "content": "hi"}]
OWN = {"name": "TURN", "description": "turns", "input_schema": TOOL["function"]["parameters"]}


@pytest.fixture(scope="module")
def client(gateway):
    import anthropic

    with anthropic.Anthropic(base_url=gateway.url, api_key="none-needed", max_retries=0) as made:
        yield made


def saying(text):
    """An extra body that forces the model to answer this text."""
    return {"guided_choice": [text]}


def test_text_is_answered(client) -> None:
    """A text answer has its stop reason and usage."""
    message = client.messages.create(model=MODEL, messages=HI, system="brief", max_tokens=9, extra_body=saying("HELLO"))
    assert [block.text for block in message.content] == ["HELLO"]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens == len("HELLO") + 1
    cut = client.messages.create(model=MODEL, messages=HI, max_tokens=3)
    assert cut.stop_reason == "max_tokens"
    stopped = client.messages.create(
        model=MODEL, messages=HI, max_tokens=9, stop_sequences=["X", "LL"], extra_body=saying("HELLO")
    )
    assert stopped.content[0].text == "HE"
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "LL")


def test_a_stream_says_what_the_whole_answer_says(client) -> None:
    """The message that the client assembles from events equals the whole answer."""
    with client.messages.stream(model=MODEL, messages=HI, max_tokens=50, extra_body=saying("NO 世界")) as stream:
        assert "".join(stream.text_stream) == "NO 世界"
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn"
    whole = client.messages.create(model=MODEL, messages=HI, max_tokens=50, extra_body=saying("NO 世界"))
    assert final.content[0].text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_tools_are_called_and_their_results_read(client) -> None:
    """Calls in the model's notation become blocks; a message with results and more text is accepted."""
    with client.messages.stream(
        model=MODEL, messages=HI, max_tokens=200, tools=[OWN], extra_body=saying(f"NOW{TURN}")
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_message()
    text, call = final.content
    assert text.text == "NOW"
    assert (call.type, call.name, call.input["AT"]) == ("tool_use", "TURN", 7)
    assert final.stop_reason == "tool_use"
    whole = client.messages.create(
        model=MODEL, messages=HI, max_tokens=200, tools=[OWN], extra_body=saying(f"NOW{TURN}")
    )
    assert whole.content[1].input == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "done"}]}
    history = [
        *HI,
        {"role": "assistant", "content": [block.model_dump() for block in final.content]},
        {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},
    ]
    after = client.messages.create(model=MODEL, messages=history, max_tokens=9, tools=[OWN], extra_body=saying("OK"))
    assert after.content[0].text == "OK"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "TURN"}])
def test_a_tool_is_called_where_one_must_be(client, choice) -> None:
    """A required call has arguments that follow the tool's schema."""
    schema = {
        "type": "object",
        "properties": {"TO": {"enum": ["NORTH"]}},
        "required": ["TO"],
        "additionalProperties": False,
    }
    tools = [{"name": "TURN", "input_schema": schema}]
    message = client.messages.create(model=MODEL, messages=HI, max_tokens=99, tools=tools, tool_choice=choice)
    (call,) = message.content
    assert call.input == {"TO": "NORTH"}


def test_an_answer_may_be_as_long_as_the_context(client) -> None:
    """`max_tokens` is mandatory and often another model's limit: what does not fit is cut, not refused."""
    message = client.messages.create(model=MODEL, messages=HI, max_tokens=CONTEXT * 8, extra_body=saying("A"))
    assert message.stop_reason == "end_turn"
    full = client.messages.create(model=MODEL, messages=HI, max_tokens=CONTEXT * 8, extra_body={"ignore_eos": True})
    assert full.stop_reason == "model_context_window_exceeded"


def test_a_prompt_that_is_too_long_is_refused_in_the_words_that_agents_act_on(client) -> None:
    """The refusal has both numbers; a text that is far too long gets it after its beginning, in the same words."""
    import anthropic

    for length in (CONTEXT, 100 * CONTEXT):
        with pytest.raises(anthropic.BadRequestError) as caught:
            client.messages.create(model=MODEL, messages=[{"role": "user", "content": "A" * length}], max_tokens=1)
        words = re.fullmatch(r"prompt is too long: (\d+) tokens > (\d+) maximum", caught.value.body["error"]["message"])
        assert int(words[1]) > int(words[2]) == CONTEXT - 1


def test_models_have_the_clients_shape(client) -> None:
    """Models are listed and shown one by one; batches do not exist, and the error says so."""
    import anthropic

    (model,) = client.models.list().data
    assert (model.type, model.id) == ("model", MODEL)
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(anthropic.NotFoundError, match="batches"):
        client.messages.batches.list()


def test_tokens_are_counted(client) -> None:
    """Counted tokens equal the answer's usage, tools included."""
    counted = client.messages.count_tokens(model=MODEL, messages=HI, system="brief", tools=[OWN]).input_tokens
    usage = client.messages.create(model=MODEL, messages=HI, system="brief", tools=[OWN], max_tokens=1).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens
    assert counted > client.messages.count_tokens(model=MODEL, messages=HI).input_tokens


def test_turns_alternate(http) -> None:
    """Consecutive messages of one role are joined; thinking is not text, and calls stay with their message."""
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    given = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}, call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "2"}]},
    ]
    calls = [{"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
    plain = [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "t", "content": "2"},
    ]
    counted = http.post(f"{PATH}/count_tokens", json={"messages": given}).json()["input_tokens"]
    assert counted == http.post("/tokenize", json={"messages": plain}).json()["count"]


def test_errors_are_the_clients_own(client) -> None:
    """Each status raises the client's exception for it, with an error type of Anthropic's."""
    import anthropic

    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="claude-x", messages=HI, max_tokens=1)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model=MODEL, messages=HI, max_tokens=1, extra_body={"temperature": -1})
    assert caught.value.body["error"]["type"] == "invalid_request_error"


def test_tools_of_others_are_left_out(http) -> None:
    """Tools that Anthropic would run are ignored, and a header says so."""
    body = {"messages": HI, "max_tokens": 1, "tools": [{"type": "web_search_20250305", "name": "web_search"}, OWN]}
    response = http.post(PATH, json=body)
    assert response.status_code == 200
    assert response.headers["X-Shardhub-Warning"] == "ignored unknown fields: 'tools.web_search_20250305'"


IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x/y"}}
BAD = {
    "no max_tokens": ({"max_tokens": None}, "max_tokens"),
    "max_tokens of 0": ({"max_tokens": 0}, "max_tokens"),
    "no messages": ({"messages": []}, "messages"),
    "no content": ({"messages": [{"role": "user"}]}, "messages.0.content"),
    "a system of numbers": ({"system": [1]}, "system"),
    "an unknown choice": ({"tool_choice": {"type": "maybe"}}, "tool_choice"),
    "a choice of a tool that is not there": ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
    "a tool without a name": ({"tools": [{"input_schema": {}}]}, "tools.0.function.name"),
    "a stop that is empty": ({"stop_sequences": [""]}, "stop_sequences.0"),
    "a format that is none": ({"output_config": {"format": {"type": "xml"}}}, "output_config.type"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_are_refused(http, name, stream) -> None:
    """The error names the wrong field, also for a streaming request."""
    body, param = BAD[name]
    response = http.post(PATH, json={"messages": HI, "max_tokens": 1, **body, "stream": stream})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
