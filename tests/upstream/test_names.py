"""What other packages have no public name for is there, and does what it is used for."""

from __future__ import annotations

from dataclasses import fields

import httpx2
import mlx.core as mx
import mlx.nn as nn
from huggingface_hub import CommitOperationAdd, HfApi

from shardhub.upstream import hub_client, mlx_lm_code
from tests import tiny


def test_headers_carry_the_token() -> None:
    """They are those of the client's own requests."""
    headers = hub_client.hub_headers(HfApi(token="hf_secret"))
    assert headers["authorization"] == "Bearer hf_secret"
    assert "user-agent" in headers
    assert "authorization" not in hub_client.hub_headers(HfApi(token=False))


def test_hook_names_a_request() -> None:
    """The client's own hook gives each request an id, by which a Hub's operators find it."""
    request = httpx2.Request("GET", "http://localhost/")
    hub_client.request_hook()(request)
    assert request.headers["X-Amzn-Trace-Id"]


def test_xet_is_known_of() -> None:
    """Whether the client would use it is a yes or a no."""
    assert hub_client.has_xet() in (True, False)


def test_operation_goes_outside_git() -> None:
    """The three attributes are the client's, and set as it sets them."""
    operation = CommitOperationAdd(path_in_repo="a", path_or_fileobj=b"data")
    hub_client.use_lfs(operation)
    assert (operation._upload_mode, operation._should_ignore, operation._is_uploaded) == ("lfs", False, False)
    hub_client.use_lfs(operation, is_uploaded=True)
    assert operation._is_uploaded is True
    assert {"_upload_mode", "_should_ignore", "_is_uploaded"} <= {field.name for field in fields(operation)}


def test_model_is_found_in_the_registry() -> None:
    """A model's class, and that of its arguments, which read the config."""
    config = tiny.config("llama")
    model_class, arguments_class = mlx_lm_code.model_classes(config)
    assert arguments_class.from_dict(config).hidden_size == config["hidden_size"]
    assert issubclass(model_class, nn.Module)


def test_infinities_are_read() -> None:
    """As transformers writes them in JSON, at any depth."""
    config = {"limits": [{"__float__": "Infinity"}, 1.5]}
    assert mlx_lm_code.decode_infinities(config) == {"limits": [float("inf"), 1.5]}


def test_global_scale_is_asked_of_the_class() -> None:
    """Linear layers take one, embeddings may not; the answer is a bool."""
    assert mlx_lm_code.takes_global_scale(nn.Linear(32, 32)) in (True, False)
    mx.eval(mx.zeros(1))
