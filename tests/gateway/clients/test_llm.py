"""The `llm` command with models of its file extra-openai-models.yaml, unmodified."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = shutil.which("llm", path=str(Path(sys.executable).parent))

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(COMMAND is None, reason="llm is not installed: pip install 'shardhub[clients]'"),
]


@pytest.fixture
def llm(gateway, tmp_path):
    """Runs the command with a home of its own; returns what it prints."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: chain\n  model_name: tiny\n  api_base: {gateway.url}/v1\n  supports_schema: true\n"
    )
    env = {**os.environ, "LLM_USER_PATH": str(tmp_path)}

    def run(*arguments: str) -> str:
        command = [COMMAND, "-m", "chain", "--key", "none-needed", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=240, check=False, env=env, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_llm_is_answered(llm) -> None:
    """Streamed and whole answers are the same; another model is an error that the command shows."""
    options = ("hi", "-o", "max_tokens", "6", "-o", "temperature", "0")
    streamed = llm(*options)
    assert streamed.strip()
    assert llm(*options, "--no-stream") == streamed


def test_llm_gets_what_its_schema_says(llm) -> None:
    """A schema in the command's short form, which allows further properties, shapes the answer."""
    answer = json.loads(llm("hi", "--schema", "AGE int", "-o", "max_tokens", "60", "-o", "logit_bias", '{"10": -100}'))
    assert isinstance(answer["AGE"], int)
