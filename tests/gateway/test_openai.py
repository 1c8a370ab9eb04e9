"""OpenAI's own Python client, unmodified."""

from __future__ import annotations

import json

import openai
import pydantic
import pytest

HI = [{"role": "user", "content": "hi"}]
MODEL = "tiny"


@pytest.fixture(scope="module")
def client(gateway):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none-needed", max_retries=0) as made:
        yield made


def test_chat(client) -> None:
    """The answer has content, reason and usage."""
    completion = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=5)
    assert completion.object == "chat.completion"
    assert completion.choices[0].finish_reason == "length"
    assert completion.choices[0].message.content
    assert completion.usage.completion_tokens == 5
    assert completion.usage.prompt_tokens_details.cached_tokens is not None


def test_streaming_helper(client) -> None:
    """The client's helper gives its events and assembles its final completion."""
    with client.chat.completions.stream(
        model=MODEL,
        messages=HI,
        logprobs=True,
        stream_options={"include_usage": True},
        extra_body={"guided_choice": ["HELLO"]},
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta"} <= set(kinds)
    assert final.usage.completion_tokens == len("HELLO") + 1
    assert final.choices[0].message.content == "HELLO"


class Person(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    NAME: str = pydantic.Field(pattern="^[A-Z]{2,6}$")
    AGE: int = pydantic.Field(ge=0, le=99)


def test_parse_with_a_schema(client) -> None:
    """The answer is parsed into a pydantic model."""
    completion = client.chat.completions.parse(
        model=MODEL, messages=HI, response_format=Person, temperature=1.2, seed=1
    )
    assert isinstance(completion.choices[0].message.parsed, Person)


def test_tools(client) -> None:
    """A forced call works, whole and streamed."""
    tools = [openai.pydantic_function_tool(Person)]
    choice = {"type": "function", "function": {"name": "Person"}}
    completion = client.chat.completions.create(model=MODEL, messages=HI, tools=tools, tool_choice=choice)
    (call,) = completion.choices[0].message.tool_calls
    Person.model_validate_json(call.function.arguments)
    with client.chat.completions.stream(model=MODEL, messages=HI, tools=tools, tool_choice=choice) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    (call,) = final.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Person)


def test_completions(client) -> None:
    """Prompts may be a text, a list or ids, with echo and log probabilities, whole and streamed."""
    assert client.completions.create(model=MODEL, prompt="HI", max_tokens=3).choices[0].text
    completion = client.completions.create(model=MODEL, prompt=[[72, 73], [74]], max_tokens=1, echo=True, logprobs=2)
    assert len(completion.choices) == 2
    assert completion.choices[0].logprobs.token_logprobs[0] is None
    parts = list(client.completions.create(model=MODEL, prompt="HI", max_tokens=3, stream=True))
    assert parts[-1].choices[0].finish_reason == "length"


def test_models(client) -> None:
    """Models are listed and shown one by one."""
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"


def test_errors_are_the_clients_own(client) -> None:
    """Each status raises the client's exception for it."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=HI, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=HI)


def test_raw_response(client) -> None:
    """Response headers contain the request's id and the ignored fields."""
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HI, max_tokens=1, extra_body={"guided_choice": ["A"], "odd": 1}
    )
    assert raw.headers["x-shardhub-warning"].endswith("'odd'")
    assert raw.request_id
    assert raw.parse().choices[0].message.content in ("A", "")


def test_extra_body_reaches_the_sampler(client) -> None:
    """Parameters outside OpenAI's API are given as to vLLM."""
    completion = client.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=30, extra_body={"guided_regex": "[0-9]{3}", "top_k": 5, "min_p": 0.1}
    )
    assert json.loads("[" + completion.choices[0].message.content.lstrip("0") + "]") is not None
    assert len(completion.choices[0].message.content) == 3
