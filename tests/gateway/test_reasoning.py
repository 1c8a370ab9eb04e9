"""A model's reasoning, separated from its answer in each API."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from tests import cut, scripted
from tests.gateway.conftest import TEMPLATE, save_model
from tests.gateway.serving import GatewayProcess

HI = [{"role": "user", "content": "hi"}]
# A template with a switch, and a variable by which the prompt opens the reasoning itself.
SWITCHED = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if opened %}<think>\n<|go_open|>"
    "{% elif enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n<|go_plain|>"
    "{% else %}<|go|>{% endif %}{% endif %}"
)
SCRIPTS = {
    scripted.GO: ["<think>", "hm END ", "hm", "</think>", "\n\nIt is ", "42 ", "END", " never"],
    scripted.go("plain"): ["At once"],
    scripted.go("open"): ["Which?", "</thi", "nk>", "YES", " and more"],
}
NUM = 9


@pytest.fixture(scope="module")
def thinking(served, tmp_path_factory):
    """A gateway whose template opens the reasoning; the stages, and therefore the nodes, are the same."""
    folder = tmp_path_factory.mktemp("thinking")
    model = save_model(folder / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["chat_template"] = TEMPLATE.replace("<|assistant|>", "<|assistant|><think>\n") + "{# </think> #}"
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    process = GatewayProcess(cut.cut(model, folder / "out", (3,)).folder, served.addresses, ("--model-name", "tiny"))
    try:
        yield process
    finally:
        assert process.stop() == 0


def test_chats_have_the_reasoning_in_a_field_of_its_own(thinking) -> None:
    """Reasoning has the field that all clients read, whole and streamed, and its tokens are counted."""
    body = {"messages": HI, "max_tokens": NUM, "ignore_eos": True}
    with httpx.Client(base_url=thinking.url, timeout=60) as http:
        whole = http.post("/v1/chat/completions", json=body).json()
        answer = http.post("/v1/chat/completions", json={**body, "stream": True}).text
    message = whole["choices"][0]["message"]
    assert message["content"] == ""
    assert message["reasoning_content"]
    assert "reasoning" not in message
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == NUM
    chunks = [json.loads(line[6:]) for line in answer.split("\n") if line.startswith("data: {")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning_content"]
    assert "".join(delta.get("content", "") for delta in deltas) == ""


def test_responses_have_the_reasoning_as_an_item(thinking) -> None:
    """Reasoning is an item with events of its own."""
    with openai.OpenAI(base_url=f"{thinking.url}/v1", api_key="x", max_retries=0) as client:
        options = {"model": "tiny", "input": "hi", "max_output_tokens": NUM, "extra_body": {"ignore_eos": True}}
        whole = client.responses.create(**options)
        events = list(client.responses.create(**options, stream=True))
    (item,) = whole.output
    assert item.type == "reasoning"
    said = "".join(event.delta for event in events if event.type == "response.reasoning_summary_text.delta")
    assert said == item.summary[0].text
    assert whole.usage.output_tokens_details.reasoning_tokens == NUM


def test_messages_have_the_reasoning_as_a_block(thinking) -> None:
    """Reasoning is a block, which is accepted back with the history."""
    import anthropic

    with anthropic.Anthropic(base_url=thinking.url, api_key="x", max_retries=0) as client:
        options = {"model": "tiny", "max_tokens": NUM, "extra_body": {"ignore_eos": True}}
        with client.messages.stream(messages=HI, **options) as stream:
            for _ in stream:
                pass
            (block,) = stream.get_final_message().content
        assert block.type == "thinking"
        assert block.thinking
        history = [*HI, {"role": "assistant", "content": [block.model_dump()]}, *HI]
        assert client.messages.create(messages=history, **options).content[0].type == "thinking"


@pytest.fixture(scope="module")
def switched(tmp_path_factory):
    """A gateway whose model thinks unless its template turns that off."""
    folder = tmp_path_factory.mktemp("switched")
    model = scripted.save(folder / "model", SCRIPTS, template=SWITCHED)
    process = GatewayProcess(cut.cut(model, folder / "out", (1,)).folder, [], ("--reasoning-field", "both"))
    try:
        with httpx.Client(base_url=process.url, timeout=60) as http:
            yield http
    finally:
        assert process.stop() == 0


def chat(http: httpx.Client, **fields) -> dict:
    answer = http.post("/v1/chat/completions", json={"messages": HI, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_tokens_are_counted_by_what_they_wrote(switched) -> None:
    """Reasoning tokens exclude the tags, and are zero without reasoning."""
    answer = chat(switched)
    assert answer["choices"][0]["message"]["content"] == "It is 42 END never"
    assert answer["choices"][0]["message"]["reasoning"] == "hm END hm"
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2
    plain = chat(switched, enable_thinking=False)
    assert plain["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"thinking": False}},
        {"thinking": {"type": "disabled"}, "reasoning_effort": "high"},
        {"reasoning": {"enabled": False}},
        {"reasoning": {"effort": "none"}},
        {"think": False},
    ],
    ids=str,
)
def test_clients_turn_it_off_in_their_own_words(switched, fields) -> None:
    """Each client's parameter reaches the template's switch."""
    message = chat(switched, **fields)["choices"][0]["message"]
    assert message["content"] == "At once"
    assert "reasoning_content" not in message


def test_other_apis_turn_it_off(switched) -> None:
    """Responses use an effort, and messages their own field."""
    response = switched.post("/v1/responses", json={"input": "hi", "reasoning": {"effort": "none"}}).json()
    assert [item["type"] for item in response["output"]] == ["message"]
    body = {"messages": HI, "max_tokens": 20, "thinking": {"type": "disabled"}}
    assert switched.post("/v1/messages", json=body).json()["content"] == [{"type": "text", "text": "At once"}]


def test_stop_strings_count_in_the_answer_alone(switched) -> None:
    """A stop string within the reasoning does not stop it, in any choice."""
    for choice in chat(switched, stop=["END"], n=2)["choices"]:
        assert choice["message"]["reasoning_content"] == "hm END hm"
        assert choice["message"]["content"] == "It is 42 "
        assert choice["finish_reason"] == "stop"


def test_likelihoods_are_those_of_the_answer(switched) -> None:
    """Tokens of the reasoning and of its tags are left out, as from `content`."""
    (choice,) = chat(switched, logprobs=True)["choices"]
    text = "".join(entry["token"] for entry in choice["logprobs"]["content"])
    assert text.strip() == choice["message"]["content"]


def test_a_client_may_want_none_of_it(switched) -> None:
    """A client may exclude the reasoning, which is still produced and counted."""
    answer = chat(switched, include_reasoning=False)
    assert "reasoning_content" not in answer["choices"][0]["message"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2


def test_a_shaped_answer_has_none_where_the_template_can_say_so(switched) -> None:
    """Where the template has a switch, the grammar of a shaped answer excludes reasoning."""
    message = chat(switched, guided_choice=["At once"])["choices"][0]["message"]
    assert (message["content"], message.get("reasoning_content")) == ("At once", None)


def test_a_shape_begins_after_a_reasoning_that_the_prompt_opened(switched) -> None:
    """Reasoning that the prompt opened is not shaped; the answer after it is."""
    fields = {"guided_choice": ["YES", "NO"], "chat_template_kwargs": {"opened": True}}
    message = chat(switched, **fields)["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("YES", "Which?")
