"""What a model thinks, told apart from what it answers, in each API."""

from __future__ import annotations

import json

import anthropic
import httpx
import openai
import pytest

from tests import cut
from tests.gateway.conftest import TEMPLATE, save_model
from tests.gateway.serving import GatewayProcess

HI = [{"role": "user", "content": "hi"}]
NUM = 9


@pytest.fixture(scope="module")
def thinking(served, tmp_path_factory):
    """A gateway whose template opens the reasoning: the stages are the same, so the same nodes serve it."""
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


def test_chats_tell_it_in_a_field_of_its_own(thinking) -> None:
    """Under both names that clients read, whole and streamed, and counted."""
    body = {"messages": HI, "max_tokens": NUM, "ignore_eos": True}
    with httpx.Client(base_url=thinking.url, timeout=60) as http:
        whole = http.post("/v1/chat/completions", json=body).json()
        answer = http.post("/v1/chat/completions", json={**body, "stream": True}).text
    message = whole["choices"][0]["message"]
    assert message["content"] == ""
    assert message["reasoning_content"]
    assert message["reasoning"] == message["reasoning_content"]
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == NUM
    chunks = [json.loads(line[6:]) for line in answer.split("\n") if line.startswith("data: {")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning_content"]
    assert "".join(delta.get("content", "") for delta in deltas) == ""


def test_responses_tell_it_as_an_item(thinking) -> None:
    """With events of its own."""
    with openai.OpenAI(base_url=f"{thinking.url}/v1", api_key="x", max_retries=0) as client:
        options = {"model": "tiny", "input": "hi", "max_output_tokens": NUM, "extra_body": {"ignore_eos": True}}
        whole = client.responses.create(**options)
        events = list(client.responses.create(**options, stream=True))
    (item,) = whole.output
    assert item.type == "reasoning"
    said = "".join(event.delta for event in events if event.type == "response.reasoning_summary_text.delta")
    assert said == item.summary[0].text
    assert whole.usage.output_tokens_details.reasoning_tokens == NUM


def test_messages_tell_it_as_a_block(thinking) -> None:
    """And what was thought is taken back with the history."""
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


def test_a_shaped_answer_has_none(thinking) -> None:
    """The grammar leaves no room for it."""
    body = {"messages": HI, "guided_choice": ["YES"], "max_tokens": NUM}
    message = httpx.post(f"{thinking.url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]["message"]
    assert message["content"] == "YES"
    assert "reasoning_content" not in message
