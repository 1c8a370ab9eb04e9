"""A gateway with strict limits, whose model answers to any name."""

from __future__ import annotations

import httpx
import pytest

from tests.gateway.conftest import CONTEXT
from tests.gateway.serving import GatewayProcess
from tests.gateway.test_streaming import HI


@pytest.fixture(scope="module")
def strict(served):
    process = GatewayProcess(served.pipeline, served.addresses, ("--model-name", "*", "--strict-limits"))
    with httpx.Client(base_url=process.url, timeout=60) as client:
        yield client
    assert process.stop() == 0


def test_any_name_is_the_models(strict) -> None:
    """The answer repeats the requested name; the list has the pipeline's own."""
    body = {"model": "claude-haiku-x", "messages": HI, "max_tokens": 1}
    assert strict.post("/v1/chat/completions", json=body).json()["model"] == "claude-haiku-x"
    assert strict.post("/v1/messages", json=body).json()["model"] == "claude-haiku-x"
    assert strict.get("/v1/models/claude-haiku-x").json()["id"] == "claude-haiku-x"
    (model,) = strict.get("/v1/models").json()["data"]
    assert model["id"] == model["root"]


@pytest.mark.parametrize(
    ("path", "field", "words"),
    [
        ("/v1/chat/completions", "max_tokens", f"maximum context length is {CONTEXT} tokens. However, you requested"),
        ("/v1/chat/completions", "max_completion_tokens", "in the completion"),
        ("/v1/messages", "max_tokens", f"exceed context limit: 4 + {CONTEXT} > {CONTEXT}"),
    ],
)
def test_a_limit_beyond_the_context_is_refused(strict, path, field, words) -> None:
    """The error names the field and both numbers."""
    refused = strict.post(path, json={"messages": HI, "max_tokens": CONTEXT, field: CONTEXT})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == field
    assert words in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/chat/completions", "messages"),
        ("/v1/completions", "prompt"),
        ("/v1/messages", "messages"),
        ("/v1/responses", "input"),
    ],
)
@pytest.mark.parametrize("num_chars", [CONTEXT, 3 * CONTEXT])
def test_a_prompt_beyond_the_context_is_the_field_that_is_wrong(http, path, field, num_chars) -> None:
    """The prompt is blamed, not the limit of the answer, however little the prompt exceeds the context."""
    text = "A" * num_chars
    body = {field: text if field in ("prompt", "input") else [{"role": "user", "content": text}], "max_tokens": 8}
    refused = http.post(path, json=body)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert refused.json()["error"]["param"] == field
