"""Ollama's API: streams of lines, tools, thinking, and the model's description."""

from __future__ import annotations

import json

import httpx
import pytest

from shardhub.gateway.ollama_schema import OllamaChat, OllamaGenerate
from shardhub.gateway.ollama_turns import chat_of, completion_of
from tests import cut, scripted
from tests.gateway.serving import GatewayProcess

HI = [{"role": "user", "content": "hi"}]
MIDDLE = "<|fim_middle|>"
CALL = '{"name": "f", "arguments": {"a": 1}}'
SCRIPTS = {
    scripted.GO: [
        "<think>",
        "Hm",
        " so",
        "</think>",
        "Fine",
        ", ok",
        "<tool_call>",
        '{"name": "f", "arguments": {"a": 1}}',
        "</tool_call>",
    ],
    MIDDLE: [" mid", "dle", "<|fim_pad|>", " never"],
}
FILLING = ("<|fim_prefix|>", "<|fim_suffix|>")
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<|go|>{% endif %}{# </think> tool_call.name #}"
)
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
TOOLS = [{"type": "function", "function": FUNCTION}]


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    """A client of a gateway whose model thinks, calls a tool and can fill in."""
    folder = tmp_path_factory.mktemp("ollama")
    model = scripted.save(folder / "model", SCRIPTS, template=TEMPLATE, added=FILLING)
    process = GatewayProcess(cut.cut(model, folder / "out", (1,)).folder, [], ("--model-name", "tiny"))
    try:
        with httpx.Client(base_url=process.url, timeout=60) as client:
            yield client
    finally:
        assert process.stop() == 0


def lines(answer: httpx.Response) -> list[dict]:
    """A stream's lines."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_chat_is_streamed_in_lines(http) -> None:
    """Thinking, text and a whole call are each in their field; the last line has reason, counts and durations."""
    pieces = lines(http.post("/api/chat", json={"model": "tiny:latest", "messages": HI, "tools": TOOLS}))
    messages = [piece["message"] for piece in pieces]
    assert "".join(message.get("thinking", "") for message in messages) == "Hm so"
    assert "".join(message["content"] for message in messages) == "Fine, ok"
    (call,) = [call for message in messages for call in message.get("tool_calls", ())]
    assert call["function"] == {"index": 0, "name": "f", "arguments": {"a": 1}}
    assert [piece["done"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1]["done_reason"] == "stop"
    assert {piece["model"] for piece in pieces} == {"tiny:latest"}
    assert pieces[-1]["eval_count"] > 5
    assert pieces[-1]["prompt_eval_count"] > 5
    assert pieces[-1]["total_duration"] >= pieces[-1]["eval_duration"] > 0


def test_a_chat_comes_whole_where_it_is_not_streamed(http) -> None:
    """The answer is one object with the same content, and is cut at the given limit."""
    body = {"model": "tiny", "messages": HI, "tools": TOOLS, "stream": False}
    whole = http.post("/api/chat", json=body).json()
    assert whole["message"]["content"] == "Fine, ok"
    assert whole["message"]["thinking"] == "Hm so"
    assert whole["message"]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    short = http.post("/api/chat", json={**body, "options": {"num_predict": 5}}).json()
    assert short["done_reason"] == "length"
    assert short["message"]["content"] == "Fine"


def test_a_prompt_is_answered_and_gone_on_from(http) -> None:
    """The template is applied and a context for the next prompt returned; raw requests have neither."""
    body = {"model": "tiny", "prompt": "hi", "stream": False}
    first = http.post("/api/generate", json=body).json()
    assert first["response"].startswith("Fine, ok")
    assert first["thinking"] == "Hm so"
    second = http.post("/api/generate", json={**body, "context": first["context"]}).json()
    assert second["prompt_eval_count"] == first["prompt_eval_count"] + len(first["context"])
    assert "context" not in http.post("/api/generate", json={**body, "raw": True}).json()


def test_text_is_filled_in_before_a_suffix(http) -> None:
    """Text is filled in through Ollama's API and OpenAI's, up to the token that ends it."""
    body = {"model": "tiny", "prompt": "def f(", "suffix": "return"}
    assert http.post("/api/generate", json={**body, "stream": False}).json()["response"] == " middle"
    choice = http.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"] == " middle"
    assert choice["finish_reason"] == "stop"
    assert http.post("/v1/completions", json={**body, "echo": True}).status_code == 400


def test_nothing_to_answer_loads(http) -> None:
    """An empty request succeeds: clients send it to load or unload a model."""
    loaded = http.post("/api/generate", json={"model": "tiny"}).json()
    assert (loaded["done"], loaded["done_reason"], loaded["response"]) == (True, "load", "")
    unloaded = http.post("/api/chat", json={"model": "tiny", "messages": [], "keep_alive": 0}).json()
    assert unloaded["done_reason"] == "unload"
    assert unloaded["message"] == {"role": "assistant", "content": ""}


def test_options_without_effect_are_named(http) -> None:
    """Ignored samplers and context sizes are named in a header; options about the machine alone are not."""
    options = {"mirostat": 2, "num_ctx": 10**9, "odd": 1, "num_gpu": 9, "typical_p": 1.0, "temperature": 0.5}
    answer = http.post("/api/chat", json={"model": "tiny", "messages": HI, "stream": False, "options": options})
    assert answer.headers["X-Shardhub-Warning"].endswith("'options.mirostat', 'options.num_ctx', 'options.odd'")


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/chat", {"model": "other", "messages": HI}, 404, "model 'other' not found"),
        ("/api/chat", {"messages": HI}, 400, "model is missing"),
        ("/api/chat", {"model": "tiny", "messages": HI, "options": {"temperature": "hot"}}, 400, '"hot"'),
        ("/api/chat", {"model": "tiny", "messages": HI, "options": {"top_p": 7}}, 400, "options.top_p is 7"),
        ("/api/chat", {"model": "tiny", "messages": HI, "think": "wildly"}, 400, "think"),
        ("/api/generate", {"model": "tiny", "prompt": "hi", "template": "{{ .Prompt }}"}, 400, "template"),
        ("/api/generate", {"model": "tiny", "prompt": "hi", "format": "yaml"}, 400, "format"),
        ("/api/generate", {"model": "tiny", "prompt": "hi", "context": [10**9]}, 400, "context"),
        ("/api/embed", {"model": "tiny", "input": "hi"}, 501, "embedding model as well"),
        ("/api/pull", {"model": "other"}, 403, "pulled"),
        ("/api/create", {"model": "other"}, 403, "changed"),
        ("/api/nothing", {}, 404, "nothing"),
    ],
)
def test_refusals_are_texts(http, path, body, status, words) -> None:
    """Errors have Ollama's shape and, where clients look for them, its words."""
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert words in answer.json()["error"]


def test_the_model_is_described(http) -> None:
    """The description has the name with a tag, size, context and abilities."""
    (entry,) = http.get("/api/tags").json()["models"]
    assert entry["name"] == entry["model"] == "tiny:latest"
    assert entry["size"] > 0
    (running,) = http.get("/api/ps").json()["models"]
    assert running["digest"] == entry["digest"]
    shown = http.post("/api/show", json={"model": entry["name"]}).json()
    assert set(shown["capabilities"]) == {"completion", "tools", "thinking", "insert"}
    assert shown["model_info"]["general.architecture"] == "llama"
    assert shown["model_info"]["llama.context_length"] == running["context_length"]
    assert http.post("/api/pull", json={"model": "tiny", "stream": False}).json() == {"status": "success"}
    assert http.get("/api/version").json()["version"].startswith("0.")


def test_functions_are_answered_in_their_first_form(http) -> None:
    """A call is in a message's function_call, whole and streamed."""
    body = {"messages": HI, "functions": [FUNCTION], "function_call": "auto"}
    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"]["name"] == "f"
    assert json.loads(choice["message"]["function_call"]["arguments"]) == {"a": 1}
    assert "tool_calls" not in choice["message"]
    answer = http.post("/v1/chat/completions", json={**body, "stream": True})
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    calls = [c["choices"][0]["delta"].get("function_call", {}) for c in chunks]
    assert "".join(call.get("name", "") for call in calls) == "f"
    assert json.loads("".join(call.get("arguments", "") for call in calls)) == {"a": 1}
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


def test_stops_may_be_kept_and_ends_put_off(http) -> None:
    """A stop string may be included, a token id may end, a word may be excluded, and the end may be delayed."""

    def said(**more) -> str:
        body = {"messages": HI, "max_tokens": 6, **more}
        return http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]

    ids = http.post("/tokenize", json={"prompt": "Fine, ok", "add_special_tokens": False}).json()["tokens"]
    assert said(stop=["ine"]) == "F"
    assert said(stop=["ine"], include_stop_str_in_output=True) == "Fine"
    assert said(max_tokens=9) == "Fine, ok" + "<tool_call>" + CALL + "</tool_call>"
    thought = http.post("/v1/completions", json={"prompt": "<|go|>", "max_tokens": 3, "allowed_token_ids": ids[:1]})
    assert len(set(thought.json()["choices"][0]["text"])) == 1


def test_histories_are_matched_to_their_calls() -> None:
    """Results are matched to calls by name or order, as Ollama's messages have no ids; thinking is kept."""
    body = OllamaChat.model_validate(
        {
            "model": "tiny",
            "think": False,
            "options": {"num_predict": -1, "stop": "x", "repeat_last_n": 64},
            "format": {"type": "object"},
            "messages": [
                {"role": "user", "content": "look", "images": ["QQ=="]},
                {
                    "role": "assistant",
                    "content": "",
                    "thinking": "hm",
                    "tool_calls": [
                        {"function": {"name": "f", "arguments": {"a": 1}}},
                        {"function": {"name": "g", "arguments": {}}},
                    ],
                },
                {"role": "tool", "tool_name": "g", "content": "2"},
                {"role": "tool", "content": "1"},
            ],
        }
    )
    chat = chat_of(body)
    user, assistant, second, first = (message.model_dump() for message in chat.messages)
    assert user["content"][1] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ=="}}
    assert assistant["reasoning_content"] == "hm"
    assert [call["id"] for call in assistant["tool_calls"]] == [first["tool_call_id"], second["tool_call_id"]]
    assert chat.reasoning_effort == "none"
    assert (chat.max_tokens, chat.stop, chat.repeat_last_n) == (None, ["x"], 64)
    assert chat.response_format.type == "json_schema"


def test_raw_prompts_are_completions() -> None:
    """Raw prompts honour the options and the format."""
    body = OllamaGenerate.model_validate(
        {"model": "tiny", "prompt": "a", "suffix": "b", "format": "json", "options": {"num_predict": 7, "seed": 3}}
    )
    completion = completion_of(body)
    assert (completion.prompt, completion.suffix, completion.max_tokens, completion.seed) == ("a", "b", 7, 3)
    assert completion.structured_outputs.json_ == {"type": "object"}
