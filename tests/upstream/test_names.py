"""Private names of other packages that we use exist, and do what we use them for."""

from __future__ import annotations

from dataclasses import fields

import httpx2
import mlx.core as mx
import mlx.nn as nn
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, get_session

from shardhub.hub.client import hub_api
from shardhub.upstream import hub_client, mlx_lm_code
from tests import tiny


def test_headers_carry_the_token() -> None:
    """The headers are those of the client's own requests."""
    headers = hub_client.hub_headers(HfApi(token="hf_secret"))
    assert headers["authorization"] == "Bearer hf_secret"
    assert "user-agent" in headers
    assert "authorization" not in hub_client.hub_headers(HfApi(token=False))


def test_hook_names_a_request() -> None:
    """The client's own hook gives each request an id, by which a Hub's operators can find it."""
    request = httpx2.Request("GET", "http://localhost/")
    hub_client.request_hook()(request)
    assert request.headers["X-Amzn-Trace-Id"]


def test_http_client_is_made_once() -> None:
    """A function that is set again does not close the client that other threads may use; another one does."""
    made: list[httpx2.Client] = []

    def make() -> httpx2.Client:
        made.append(httpx2.Client())
        return made[-1]

    try:
        for _ in range(2):
            hub_client.use_http_client(make)
            assert get_session() is made[0]
        hub_client.use_http_client(lambda: httpx2.Client())
        assert made[0].is_closed
    finally:
        hub_api()


def test_xet_is_known_of() -> None:
    """Whether the client would use Xet is known as a bool."""
    assert hub_client.has_xet() in (True, False)


def test_operation_goes_outside_git() -> None:
    """The three attributes are the client's own, and set as it sets them."""
    operation = CommitOperationAdd(path_in_repo="a", path_or_fileobj=b"data")
    hub_client.use_lfs(operation)
    assert (operation._upload_mode, operation._should_ignore, operation._is_uploaded) == ("lfs", False, False)
    hub_client.use_lfs(operation, is_uploaded=True)
    assert operation._is_uploaded is True
    assert {"_upload_mode", "_should_ignore", "_is_uploaded"} <= {field.name for field in fields(operation)}


def test_model_is_found_in_the_registry() -> None:
    """The registry gives a model's class and its arguments' class, which reads the config."""
    config = tiny.config("llama")
    model_class, arguments_class = mlx_lm_code.model_classes(config)
    assert arguments_class.from_dict(config).hidden_size == config["hidden_size"]
    assert issubclass(model_class, nn.Module)


def test_infinities_are_read() -> None:
    """Infinities in transformers' JSON notation are read at any depth."""
    config = {"limits": [{"__float__": "Infinity"}, 1.5]}
    assert mlx_lm_code.decode_infinities(config) == {"limits": [float("inf"), 1.5]}


def test_models_are_quantised_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    """In place, unevaluated, with a config that records it; the converter's own line is not printed."""
    config = tiny.config("llama")
    model = tiny.build(config)
    predicate = mlx_lm_code.mixed_predicate("mixed_4_6", model, 32)
    made = mlx_lm_code.quantize(model, config, bits=4, group_size=32, mode="affine", predicate=predicate)
    assert made["quantization"]["lm_head"] == {"bits": 6, "group_size": 32, "mode": "affine"}
    assert made["quantization_config"] == made["quantization"]
    assert "quantization" not in config
    assert isinstance(model.lm_head, nn.QuantizedLinear)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="mixed"):
        mlx_lm_code.mixed_predicate("mixed_4_6", nn.Linear(2, 2), 32)


def test_global_scale_is_asked_of_the_class() -> None:
    """Linear layers take a global scale, embeddings may not; the answer is a bool."""
    assert mlx_lm_code.takes_global_scale(nn.Linear(32, 32)) in (True, False)
    mx.eval(mx.zeros(1))
