"""Streams, byte by byte, as clients parse them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def settled(content: bytes) -> str:
    """A stream in which varying values are replaced by names."""
    text = content.decode()
    # A busy machine has silence in it.
    text = re.sub(r": keepalive \d+/\d+\n(event: ping\ndata: .*\n)?\n", "", text)
    text = re.sub(r'"id":"(chatcmpl|cmpl)-[0-9a-f]{24}"', r'"id":"\1-ID"', text)
    text = re.sub(r'"((?:item_)?id|call_id)":"([a-z]+)_[0-9a-f]{24,48}"', r'"\1":"\2_ID"', text)
    text = re.sub(r'"(created_at|completed_at)":\d{10}', r'"\1":TIME', text)
    # How much of the prompt was there already depends on what ran before.
    text = re.sub(r'"cached_tokens":\d+', '"cached_tokens":N', text)
    text = re.sub(r'"(input_tokens|cache_read_input_tokens)":\d+(?=[^}]*"output_tokens":\d+})', r'"\1":N', text)
    text = re.sub(r'"created":\d{10},', '"created":TIME,', text)
    return re.sub(r'"system_fingerprint":"fp_[0-9a-f]{12}"', '"system_fingerprint":"fp_ID"', text)


def chunks(answer):
    """The data of a stream's events, without [DONE]."""
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def content_of(answer) -> str:
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks(answer) if c["choices"])


ARGUMENTS = '{"AT": 7, "TO": ["NORTH", "BY", "NORTH", "WEST", "OR", "SO"]}'
TURN = f'<tool_call>{{"name": "TURN", "arguments": {ARGUMENTS}}}</tool_call>'
TOOL = {"type": "function", "function": {"name": "TURN", "parameters": {"type": "object"}}}
STREAMS = {
    "chat": (CHAT, {"messages": HI, "guided_choice": ["HI 世!"]}),
    "chat-usage": (CHAT, {"messages": HI, "guided_choice": ["A"], "stream_options": {"include_usage": True}}),
    "chat-length": (CHAT, {"messages": HI, "guided_choice": ["ABCDEF"], "max_tokens": 3}),
    "chat-stop": (CHAT, {"messages": HI, "guided_choice": ["AB<STOP>CD"], "stop": "<STOP>"}),
    "chat-stop-no": (CHAT, {"messages": HI, "guided_choice": ["AB<ST CD"], "stop": ["<STOP>", "XY"]}),
    "chat-tool": (CHAT, {"messages": HI, "tools": [TOOL], "guided_choice": [f"NOW{TURN}"]}),
    "response": ("/v1/responses", {"input": "hi", "guided_choice": ["HI 世!"], "max_output_tokens": 9}),
    "response-tool": (
        "/v1/responses",
        {"input": "hi", "tools": [{"type": "function", **TOOL["function"]}], "guided_choice": [f"NOW{TURN}"]},
    ),
    "response-length": ("/v1/responses", {"input": "hi", "guided_choice": ["ABCDEF"], "max_output_tokens": 3}),
    "message": ("/v1/messages", {"messages": HI, "guided_choice": ["HI 世!"], "max_tokens": 9}),
    "message-tool": (
        "/v1/messages",
        {
            "messages": HI,
            "tools": [{"name": "TURN", "input_schema": {"type": "object"}}],
            "guided_choice": [f"NOW{TURN}"],
            "max_tokens": 200,
        },
    ),
    "message-stop": (
        "/v1/messages",
        {"messages": HI, "guided_choice": ["AB<STOP>CD"], "stop_sequences": ["<STOP>"], "max_tokens": 20},
    ),
    "completion": (TEXT, {"prompt": "X", "guided_choice": ["AB"]}),
    "completion-echo": (
        TEXT,
        {"prompt": "X Y", "guided_choice": ["AB"], "echo": True, "stream_options": {"include_usage": True}},
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_are_the_golden_bytes(http, name) -> None:
    """Chunks have a fixed order and form: role once, whole characters, the reason in its own chunk, usage, [DONE]."""
    path, body = STREAMS[name]
    answer = http.post(path, json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert settled(answer.content) == (GOLDEN / f"{name}.sse").read_text(encoding="utf-8")


def test_headers_tell_proxies_to_let_it_pass(http) -> None:
    """A stream is neither cached nor buffered, and its response has the request's id."""
    answer = http.post(CHAT, json={"messages": HI, "max_tokens": 1, "stream": True})
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.headers["X-Request-Id"].startswith("req-")
    assert "content-length" not in answer.headers


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_stream_says_what_the_whole_answer_says(http, temperature) -> None:
    """Text, log probabilities, reason and usage of each choice equal those of the whole answer."""
    body = {
        "messages": HI,
        "max_tokens": 40,
        "temperature": temperature,
        "seed": 11,
        "n": 3,
        "logprobs": True,
        "top_logprobs": 3,
    }
    whole = http.post(CHAT, json=body).json()
    parts = chunks(http.post(CHAT, json={**body, "stream": True, "stream_options": {"include_usage": True}}))
    assert len({(part["id"], part["created"], part["model"]) for part in parts}) == 1
    for choice in whole["choices"]:
        own = [c for part in parts for c in part["choices"] if c["index"] == choice["index"]]
        assert "".join(c["delta"].get("content", "") for c in own) == choice["message"]["content"]
        assert [e for c in own if c["logprobs"] for e in c["logprobs"]["content"]] == choice["logprobs"]["content"]
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == [choice["finish_reason"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert sum("role" in c["delta"] for c in own) == 1
    counted = {key: value for key, value in whole["usage"].items() if key.endswith("_tokens")}
    assert counted.items() <= parts[-1]["usage"].items()
    assert all(part["usage"] is None for part in parts[:-1])


def test_completions_stream_what_the_whole_says(http) -> None:
    """Text and log probabilities, the prompt's included, equal those of the whole answer, for a list of prompts."""
    body = {"prompt": ["ABC", "XY"], "max_tokens": 12, "temperature": 1, "seed": 3, "echo": True, "logprobs": 2}
    whole = http.post(TEXT, json=body).json()
    parts = chunks(http.post(TEXT, json={**body, "stream": True}))
    for choice in whole["choices"]:
        own = [c for part in parts for c in part["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"]
        for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            streamed = [value for c in own if c["logprobs"] for value in c["logprobs"][field]]
            assert streamed == choice["logprobs"][field], field


@pytest.mark.parametrize("word", ["日本語テキスト", "naïve café", "🙂🙃", "e\u0301"])
def test_characters_are_never_split(http, word) -> None:
    """However tokens divide characters, each chunk holds whole ones, and together they are the text."""
    answer = http.post(CHAT, json={"messages": HI, "guided_choice": [word], "stream": True})
    assert content_of(answer) == word
    assert "\ufffd" not in answer.text


@pytest.mark.parametrize(
    ("said", "stops", "shown"),
    [
        ("ABCD", ["CD"], "AB"),
        ("ABCD", ["D", "CD"], "AB"),
        ("ABCD", ["ABCD"], ""),
        ("AABAAC", ["AAC"], "AAB"),
        ("ABC", ["BCD"], "ABC"),
        ("A世界B", ["界"], "A世"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_no_part_of_a_stop_is_shown(http, said, stops, shown, stream) -> None:
    """The text before the stop is complete, and log probabilities cover exactly the text shown."""
    body = {"messages": HI, "guided_choice": [said], "stop": stops, "logprobs": True, "stream": stream}
    answer = http.post(CHAT, json=body)
    if stream:
        parts = chunks(answer)
        assert content_of(answer) == shown
        entries = [e for p in parts for c in p["choices"] if c["logprobs"] for e in c["logprobs"]["content"]]
        assert parts[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        choice = answer.json()["choices"][0]
        assert choice["message"]["content"] == shown
        assert choice["finish_reason"] == "stop"
        entries = choice["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == shown


def test_a_stream_that_cannot_begin_has_a_status(http) -> None:
    """An error before the first byte has a status, so that clients can retry."""
    long = [{"role": "user", "content": "A" * 5000}]
    answer = http.post(CHAT, json={"messages": long, "stream": True})
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json()["error"]["code"] == "context_length_exceeded"
