"""Scoring requests of lm-eval, compared with the unsplit model in this process."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from tests import tiny

PROMPTS = [[int(v) % 250 for v in range(3 + k, 3 + k + n * 17, 17)] for k, n in ((0, 5), (1, 40), (2, 300))]


@pytest.fixture(scope="module")
def whole():
    return tiny.build(tiny.config("llama"))


def request(**more):
    """The request of lm-eval's local-completions for loglikelihood."""
    return {
        "model": "tiny",
        "prompt": PROMPTS,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
        **more,
    }


def test_loglikelihoods_are_the_unsplit_models(http, whole) -> None:
    """Lists have the prompt's length plus one, the first entry is null, and greedy is exact equality of floats."""
    answer = http.post("/v1/completions", json=request()).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for prompt, choice in zip(PROMPTS, answer["choices"], strict=True):
        logprobs = choice["logprobs"]
        logits = whole(mx.array([prompt]))[0].astype(mx.float32)
        expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        assert all(len(logprobs[key]) == len(prompt) + 1 for key in logprobs)
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        for at, token in enumerate(prompt[1:], start=1):
            row = expected[at - 1]
            assert abs(logprobs["token_logprobs"][at] - row[token]) < 1e-4
            is_greedy = logprobs["token_logprobs"][at] == max(logprobs["top_logprobs"][at].values())
            assert is_greedy == (int(row.argmax()) == token)
        assert choice["text"].startswith(
            http.post("/detokenize", json={"tokens": prompt}).json()["prompt"].rstrip("\ufffd")
        )


def test_greedy_tokens_are_reported_as_greedy(http, whole) -> None:
    """Where a prompt goes on as the model would, each token is its own maximum."""
    ids = list(PROMPTS[0])
    for _ in range(8):
        ids.append(int(whole(mx.array([ids]))[0, -1].argmax().item()))
    logprobs = http.post("/v1/completions", json=request(prompt=[ids])).json()["choices"][0]["logprobs"]
    for at in range(len(PROMPTS[0]), len(ids)):
        assert logprobs["token_logprobs"][at] == max(logprobs["top_logprobs"][at].values())


def test_text_offsets_are_places_in_the_text(http) -> None:
    """Each token of plain text begins at its offset."""
    choice = http.post("/v1/completions", json=request(prompt="AB CD", max_tokens=6)).json()["choices"][0]
    logprobs = choice["logprobs"]
    for token, start in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert choice["text"][start : start + len(token)] == token


def test_the_tokenizer_is_there_for_who_has_none(http) -> None:
    """The three routes answer that lm-eval tries before it downloads a tokenizer."""
    info = http.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|end|>"
    assert {"bos_token", "pad_token", "chat_template"} <= info.keys()
    tokens = http.post("/tokenize", json={"prompt": "AB 世", "add_special_tokens": False}).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert http.post("/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": "AB 世"}
