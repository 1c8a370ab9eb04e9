"""One gateway over two nodes, for all tests that leave it unchanged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests import cut, nodes, tiny
from tests.gateway.serving import GatewayProcess
from tests.proxy import Proxy

CONTEXT = 512
# Each token waits so long on a slowed line: an answer of 450 takes half a minute, however fast the machine.
PIECE_S = 0.05
# Of the tests' chat template: one that knows reasoning and tools beside plain messages.
TEMPLATE = (
    "{% if tools %}<|system|>{{ tools | tojson }}<tool_call>{# tool_call.name #}<|end|>{% endif %}"
    "{% for message in messages %}{% if message.role == 'bad' %}{{ raise_exception('no') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A chain that is served."""

    model: Path
    pipeline: Path
    addresses: list[str]


def save_model(folder: Path, *, seed: int = 0) -> Path:
    """A tiny model's folder with a tokenizer, whose end token is never drawn by chance.

    Args:
        seed: Of the weights.
    """
    config = tiny.config("llama")
    tiny.save(tiny.build(config, seed=seed), config, folder)
    tiny.save_tokenizer(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """Two nodes that serve a tiny model."""
    folder = tmp_path_factory.mktemp("gateway")
    model = save_model(folder / "model")
    pipeline = cut.cut(model, folder / "out", (3,))
    started = nodes.start(
        (cut.shard_folder(pipeline, 0),),
        (cut.shard_folder(pipeline, 1),),
        options=("--context", str(CONTEXT), "--max-sessions", "8"),
    )
    try:
        yield Served(model=model, pipeline=pipeline.folder, addresses=[node.address for node in started])
    finally:
        nodes.stop_all(started)


@pytest.fixture(scope="session")
def gateway(served):
    """A gateway without a key."""
    process = GatewayProcess(served.pipeline, served.addresses, ("--model-name", "tiny"))
    try:
        yield process
    finally:
        assert process.stop() == 0, "the gateway did not end well"


@pytest.fixture(scope="session")
def slow_gateway(served):
    """A gateway with slow answers: the line to its first node is slow."""
    line = Proxy(served.addresses[0])
    line.slow(PIECE_S)
    process = GatewayProcess(served.pipeline, [line.address, *served.addresses[1:]], ("--model-name", "tiny"))
    try:
        yield process
    finally:
        code = process.stop()
        line.close()
        assert code == 0, "the gateway did not end well"


@pytest.fixture(scope="session")
def http(gateway):
    """A plain HTTP client of the gateway."""
    with httpx.Client(base_url=gateway.url, timeout=60) as client:
        yield client
