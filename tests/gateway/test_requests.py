"""Good and bad requests: the right status each time, and a gateway that stays alive."""

from __future__ import annotations

import json
import re
import time

import psutil
import pytest

from shardhub.gateway.request_body import MAX_BODY_BYTES
from tests import tiny

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
# The machine may stall for a while; what no bound holds would take far longer.
SOON_S = 15
HI = [{"role": "user", "content": "hi"}]


def chat(**more):
    return {"messages": HI, "max_tokens": 2, **more}


def text(**more):
    return {"prompt": "HELLO", "max_tokens": 2, **more}


GOOD = {
    "chat": (CHAT, chat()),
    "completion": (TEXT, text()),
    "nulls mean defaults": (CHAT, chat(temperature=None, top_p=None, stop=None, n=None, seed=None, stream=None)),
    "token ids": (TEXT, text(prompt=[72, 73, 74])),
    "lists of token ids": (TEXT, text(prompt=[[72, 73, 74], [75]])),
    "list of texts": (TEXT, text(prompt=["a", "b"])),
    "null in stop": (CHAT, chat(stop=[None, "x"])),
    "empty stop list": (CHAT, chat(stop=[])),
    "n of 2": (CHAT, chat(n=2)),
    "unknown fields": (CHAT, chat(tau=1, foo={"bar": 1}, **{"": 1, " ": 2, "世\r\nX: y": 3})),
    "fields without effect": (CHAT, chat(user="u", metadata={"a": "b"}, parallel_tool_calls=True, store=False)),
    "empty stream options": (CHAT, chat(stream=True, stream_options={})),
    "parts of text": (CHAT, chat(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}])),
    "developer": (CHAT, chat(messages=[{"role": "developer", "content": "be brief"}, *HI])),
    "tool results": (
        CHAT,
        chat(
            messages=[
                *HI,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "2"},
            ]
        ),
    ),
    "a role of one's own": (CHAT, chat(messages=[{"role": "wizard", "content": "x"}])),
    "seed": (CHAT, chat(seed=-(2**63), temperature=1)),
    "top_p of 0": (CHAT, chat(top_p=0, temperature=1)),
    "many stops": (TEXT, text(stop=[f"stop{i}" for i in range(40)])),
    "special tokens in content": (CHAT, chat(messages=[{"role": "user", "content": "a<|end|>b"}])),
    "whole numbers as floats' fields": (CHAT, chat(temperature=1, presence_penalty=0)),
    "temperature near 0": (CHAT, chat(temperature=5e-324)),
    "logit bias": (CHAT, chat(logit_bias={"7": -100, "9": 5.5})),
    "lists for a template": (CHAT, chat(chat_template_kwargs={"xml_tools": ["a"]})),
    "functions": (CHAT, chat(functions=[{"name": "f", "parameters": {}}], function_call="auto")),
    "template switches": (CHAT, chat(chat_template_kwargs={"enable_thinking": False})),
    "named model": (CHAT, chat(model="tiny")),
    "max_completion_tokens": (CHAT, {"messages": HI, "max_completion_tokens": 1}),
    "echo alone": (TEXT, text(echo=True, max_tokens=0)),
    "tokenize": ("/tokenize", {"prompt": "HELLO", "add_special_tokens": False}),
    "tokenize messages": ("/tokenize", {"messages": HI}),
    "detokenize": ("/detokenize", {"tokens": [1, 2]}),
    "whole numbers as floats": (CHAT, chat(top_k=20.0, n=1.0, seed=1.0, max_tokens=2.0)),
    "numbers and flags in quotes": (CHAT, chat(temperature="0.5", max_tokens="2", seed="3", logprobs="false")),
    "no limit, as LM Studio writes it": (CHAT, chat(max_tokens=-1, guided_choice=["A"])),
    "flags as numbers": (CHAT, chat(stream=0, logprobs=1)),
    "top_k of -1": (CHAT, chat(top_k=-1)),
    "any seed": (CHAT, chat(seed=-1)),
    "samplers that do nothing": (CHAT, chat(typical_p=1.0, mirostat=0, mirostat_tau=5.0, xtc_probability=0)),
    "empty lists and objects": (CHAT, chat(tools=[], stop=[], logit_bias={}, stop_token_ids=[], bad_words=[])),
    "nulls of fields nobody knows": (CHAT, chat(foo=None, web_search_options=None)),
    "llama.cpp's names": (TEXT, {"prompt": "A", "n_predict": 2, "repeat_penalty": 1.1, "repeat_last_n": -1}),
    "a prompt that is cut": (TEXT, text(prompt="A" * 4000, truncate_prompt_tokens=3)),
    "a chat that is cut": (CHAT, chat(messages=[{"role": "user", "content": "A" * 4000}], truncate_prompt_tokens=-1)),
    "empty tokenize": ("/tokenize", {"prompt": ""}),
}

BAD = {
    "no messages": (CHAT, {"max_tokens": 1}, 400, "messages"),
    "empty messages": (CHAT, chat(messages=[]), 400, "messages"),
    "empty prompt": (TEXT, text(prompt=""), 400, "prompt"),
    "no prompts": (TEXT, text(prompt=[]), 400, "prompt"),
    "list of an empty prompt": (TEXT, text(prompt=[""]), 400, "prompt"),
    "list of no ids": (TEXT, text(prompt=[[]]), 400, "prompt"),
    "negative id": (TEXT, text(prompt=[-1]), 400, "prompt"),
    "id beyond the vocabulary": (TEXT, text(prompt=[tiny.VOCAB]), 400, "prompt"),
    "huge id": (TEXT, text(prompt=[10**30]), 400, "prompt"),
    "mixed prompts": (TEXT, text(prompt=["a", 1]), 400, "prompt"),
    "too many prompts": (TEXT, text(prompt=["a"] * 10_000), 400, "prompt"),
    "unknown model": (CHAT, chat(model="org/some-model"), 404, "model"),
    "unknown model of a completion": (TEXT, text(model="gpt-4"), 404, "model"),
    "client's own template": (CHAT, chat(chat_template_kwargs={"chat_template": "x"}), 400, "chat_template_kwargs"),
    "tokenize in kwargs": (CHAT, chat(chat_template_kwargs={"tokenize": True}), 400, "chat_template_kwargs"),
    "large object in kwargs": (
        CHAT,
        chat(chat_template_kwargs={"a": {"b": "x" * (1 << 19)}}),
        400,
        "chat_template_kwargs",
    ),
    "documents": (CHAT, chat(documents=[{"text": "x"}]), 400, "documents"),
    "documents in kwargs": (CHAT, chat(chat_template_kwargs={"documents": [{"text": "x"}]}), 400, "documents"),
    "functions and tools": (
        CHAT,
        chat(functions=[{"name": "f"}], tools=[{"type": "function", "function": {"name": "g"}}]),
        400,
        "functions",
    ),
    "self in kwargs": (CHAT, chat(chat_template_kwargs={"self": 1}), 400, "chat_template_kwargs"),
    "n too large": (CHAT, chat(n=10**6), 400, "n"),
    "n of 0": (CHAT, chat(n=0), 400, "n"),
    "max_tokens of 0": (CHAT, chat(max_tokens=0), 400, "max_tokens"),
    "negative max_tokens": (CHAT, chat(max_tokens=-2), 400, "max_tokens"),
    "prompt beyond the context": (TEXT, text(prompt=[5] * 5000), 400, None),
    "temperature as text": (CHAT, chat(temperature="hot"), 400, "temperature"),
    "temperature too high": (CHAT, chat(temperature=1e308), 400, "temperature"),
    "negative temperature": (CHAT, chat(temperature=-1), 400, "temperature"),
    "top_k of -2": (CHAT, chat(top_k=-2), 400, "top_k"),
    "top_p of 2": (CHAT, chat(top_p=2), 400, "top_p"),
    "seed too large": (CHAT, chat(seed=2**70), 400, "seed"),
    "tiny repetition penalty": (CHAT, chat(repetition_penalty=5e-324), 400, "repetition_penalty"),
    "flag as max_tokens": (CHAT, chat(max_tokens=True), 400, "max_tokens"),
    "too many logprobs": (TEXT, text(logprobs=10**6), 400, "logprobs"),
    "too many top_logprobs": (CHAT, chat(logprobs=True, top_logprobs=21), 400, "top_logprobs"),
    "top_logprobs alone": (CHAT, chat(top_logprobs=2), 400, "top_logprobs"),
    "too many stops": (CHAT, chat(stop=["x"] * 100_000), 400, "stop"),
    "number as stop": (CHAT, chat(stop=3), 400, "stop"),
    "empty stop": (CHAT, chat(stop=""), 400, "stop"),
    "huge bias": (CHAT, chat(logit_bias={str(i): 1.0 for i in range(100_000)}), 400, "logit_bias"),
    "bias of no token": (CHAT, chat(logit_bias={"x": 1}), 400, "logit_bias"),
    "bias beyond the vocabulary": (CHAT, chat(logit_bias={str(tiny.VOCAB): 1}), 400, "logit_bias"),
    "bias too large": (CHAT, chat(logit_bias={"1": 1e9}), 400, "logit_bias"),
    "suffix, of a model that cannot fill in": (TEXT, text(suffix="x"), 400, "suffix"),
    "best_of": (TEXT, text(best_of=3), 400, "best_of"),
    "choice of a tool that is not there": (CHAT, chat(tool_choice="required"), 400, "tool_choice"),
    "schema to elsewhere": (
        CHAT,
        chat(response_format={"type": "json_schema", "json_schema": {"schema": {"$ref": "http://x/y"}}}),
        400,
        "response_format",
    ),
    "schema that is its own": (
        CHAT,
        chat(
            response_format={
                "type": "json_schema",
                "json_schema": {"schema": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}},
            }
        ),
        400,
        "response_format",
    ),
    "huge schema": (CHAT, chat(guided_json={"enum": [str(i) for i in range(100_000)]}), 400, "guided_json"),
    "bad expression": (TEXT, text(guided_regex="((("), 400, "guided_regex"),
    "an expression that grows without end": (TEXT, text(guided_regex="(A{1000}){1000}"), 400, None),
    "no choices": (TEXT, text(guided_choice=[]), 400, "guided_choice"),
    "two shapes": (TEXT, text(guided_choice=["a"], guided_regex="b"), 400, "guided_choice"),
    "tokenize nothing": ("/tokenize", {}, 400, "prompt"),
    "detokenize what is no id": ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
    "array as body": (CHAT, [1, 2], 400, None),
    "nothing there": ("/v1/nothing", {"input": "x"}, 404, None),
    "embeddings": ("/v1/embeddings", {"input": "x"}, 501, None),
    "another sampler": (CHAT, chat(mirostat=2), 400, "mirostat"),
    "another grammar": (TEXT, text(structured_outputs={"grammar": "root ::= x"}), 400, "structured_outputs.grammar"),
    "audio": (CHAT, chat(modalities=["text", "audio"]), 400, "modalities"),
    "the web": (CHAT, chat(web_search_options={}), 400, "web_search_options"),
    "nothing allowed": (CHAT, chat(allowed_token_ids=[]), 400, "allowed_token_ids"),
    "allowed ids beyond the vocabulary": (TEXT, text(allowed_token_ids=[tiny.VOCAB]), 400, "allowed_token_ids"),
    "nothing of the prompt": (TEXT, text(truncate_prompt_tokens=0), 400, "truncate_prompt_tokens"),
    "half a token": (CHAT, chat(max_tokens=1.5), 400, "max_tokens"),
    "a flag as a number": (CHAT, chat(temperature=True), 400, "temperature"),
    "a number as a flag": (CHAT, chat(stream=2), 400, "stream"),
}

RAW = {
    "no JSON": (b"{", 400),
    "empty": (b"", 400),
    "NaN": (b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}', 400),
    "infinity": (b'{"messages":[{"role":"user","content":"x"}],"temperature":Infinity}', 400),
    "invalid UTF-8": (b'{"messages":[{"role":"user","content":"\xff\xfe"}]}', 400),
    "deep": (b"[" * 100_000 + b"]" * 100_000, 400),
    "deep in a field": (b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "a number of many digits": (b'{"messages":[{"role":"user","content":"x"}],"seed":' + b"9" * 10_000 + b"}", 400),
    "too big": (b'{"messages":"' + b"x" * MAX_BODY_BYTES + b'"}', 413),
}


def alive(http) -> None:
    """A good request is answered quickly."""
    started = time.monotonic()
    assert http.post(TEXT, json=text()).status_code == 200
    assert time.monotonic() - started < SOON_S


@pytest.mark.parametrize("name", GOOD)
def test_good_requests_are_answered(http, name) -> None:
    """Every meaningful request of real clients is answered."""
    path, body = GOOD[name]
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Request-Id"]
    if not body.get("stream"):
        json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert ("X-Shardhub-Warning" in answer.headers) == (name == "unknown fields")


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat(guided_choice=["A"])), (TEXT, text(guided_choice=["A"]))])
def test_a_limit_beyond_the_context_is_cut(http, path, body) -> None:
    """The limit is cut to the rest of the context, with a header; without a limit, or with -1, nothing is cut."""
    cut = http.post(path, json={**body, "max_tokens": 10**9})
    assert cut.status_code == 200, cut.text
    assert re.fullmatch(r"max_tokens was reduced from 1000000000 to \d+, .*", cut.headers["X-Shardhub-Warning"])
    for limit in (None, -1):
        free = http.post(path, json={**body, "max_tokens": limit})
        assert free.status_code == 200, free.text
        assert "X-Shardhub-Warning" not in free.headers
        assert free.json()["choices"][0]["finish_reason"] == "stop"


def test_half_a_character_is_accepted(http) -> None:
    """Text that a client cut within a character is accepted, as the client sends it again in every turn."""
    answer = http.post(CHAT, content=rb'{"max_tokens":1,"messages":[{"role":"user","content":"cut \ud83d"}]}')
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused(http, name) -> None:
    """The refusal is quick, with OpenAI's error object and the wrong field."""
    path, body, status, param = BAD[name]
    started = time.monotonic()
    answer = http.post(path, json=body)
    assert time.monotonic() - started < SOON_S
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"].split(".")[0] == param.split(".")[0]
        assert error["param"].startswith(param)
    if status == 404 and param == "model":
        assert error["code"] == "model_not_found"
    if "context" in name:
        assert error["code"] == "context_length_exceeded"
    alive(http)


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize"])
def test_malformed_bodies_are_refused(http, name, path) -> None:
    """Bodies that are not JSON, or nest deeper than parsers allow, are refused."""
    content, status = RAW[name]
    answer = http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    alive(http)


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/metrics", "/shardhub/events", "/page/js/main.js"])
def test_head_is_get_without_its_body(http, path) -> None:
    """HEAD, as monitors send, is answered without a body; for a stream it takes no place."""
    answer = http.head(path)
    assert answer.status_code == 200
    assert answer.content == b""
    assert answer.headers["X-Request-Id"]
    assert http.head("/v1/chat/completions").status_code == 405
    assert http.head("/nowhere").status_code == 404


def test_a_body_that_is_not_called_json_is_refused(http) -> None:
    """A body without JSON's content type, which other origins could send without a preflight, is refused."""
    content = json.dumps(chat()).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert http.post(CHAT, content=content, headers={"Content-Type": kind}).status_code == 400


def test_a_body_of_unknown_length_is_bounded(http) -> None:
    """A chunked body is refused once it exceeds the limit."""

    def chunks():
        for _ in range(MAX_BODY_BYTES // 65536 + 2):
            yield b"x" * 65536

    answer = http.post(CHAT, content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    alive(http)


def test_a_request_id_comes_back(http) -> None:
    """A plain id of the client is returned, and otherwise a new one."""
    assert http.get("/health", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    assert http.get("/health", headers={"X-Request-Id": "a b"}).headers["X-Request-Id"].startswith("req-")


def test_choices_of_prompts_are_in_order(http) -> None:
    """n choices for each prompt come prompt by prompt, and equal those of single requests."""
    prompts = [[72, 73], [74, 75, 76], [77]]
    body = {"max_tokens": 4, "temperature": 1.0, "seed": 5, "n": 2}
    many = http.post(TEXT, json={"prompt": prompts, **body}).json()
    alone = [http.post(TEXT, json={"prompt": prompt, **body}).json() for prompt in prompts]
    assert [choice["index"] for choice in many["choices"]] == list(range(6))
    assert [choice["text"] for choice in many["choices"]] == [
        choice["text"] for one in alone for choice in one["choices"]
    ]
    assert many["usage"]["prompt_tokens"] == 6
    assert len({choice["text"] for choice in many["choices"]}) > 3


def test_the_same_seed_gives_the_same_text(http) -> None:
    """The same seed gives the same text, and another seed another one."""
    texts = [
        http.post(CHAT, json=chat(max_tokens=12, temperature=1.2, seed=seed)).json()["choices"][0]["message"]["content"]
        for seed in (3, 3, 4)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_cached_tokens_are_reported(http) -> None:
    """The usage has the number of reused prompt tokens."""
    long = "A" * 200
    first = http.post(TEXT, json={"prompt": long, "max_tokens": 2}).json()["usage"]
    again = http.post(TEXT, json={"prompt": long + "B", "max_tokens": 2}).json()["usage"]
    assert first["prompt_tokens"] == 200
    assert again["prompt_tokens_details"]["cached_tokens"] >= 190


LONG = "AB " * ((14 << 20) // 3)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": LONG, "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}], "max_tokens": 1}),
        ("/tokenize", {"prompt": LONG}),
        ("/detokenize", {"tokens": [1] * 4_000_000}),
    ],
)
def test_a_text_that_cannot_fit_is_refused_soon(http, gateway, path, body) -> None:
    """The text is not tokenized to its end, which would take minutes and gigabytes."""
    main = psutil.Process(gateway.process.pid)
    before = sum(one.memory_info().rss for one in (main, *main.children(recursive=True)))
    began_at = time.monotonic()
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert time.monotonic() - began_at < 30
    after = sum(one.memory_info().rss for one in (main, *main.children(recursive=True)))
    assert after - before < 1 << 30
