"""The examples of docs/library.md, run unchanged and in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shardhub.localhub.server import running_hub
from tests import cut

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
EXAMPLES = re.findall(r"^```python( hub)?\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """A folder with a tiny model, where the examples run."""
    work = tmp_path_factory.mktemp("library")
    tiny_tokenizer(cut.tiny_model(work / "model"))
    return work


def run(code: str, folder: Path, **environment: str) -> str:
    """Run an example, which must succeed and write nothing on stderr; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(PAGE.parents[1]), **environment},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.timeout(600)  # nine programs, each of which imports MLX
def test_examples_of_the_page_run_as_they_stand(folder: Path) -> None:
    """Each example is a program of its own; together they take a model to an answer and leave its folders behind."""
    outputs = [run(code, folder) for needs_hub, code in EXAMPLES if not needs_hub]
    assert "bytes" in outputs[1]
    assert "tokens/s" in outputs[2]
    assert "checks passed" in outputs[2]
    assert "at this process" in outputs[3]
    assert "2 side by side:" in outputs[5]
    assert "decode step" in outputs[5]
    assert "model" in outputs[5].splitlines()[-1]
    assert "tokens: the same tokens are promised" in outputs[6]
    assert "1000" in outputs[7]
    assert "copying" in outputs[8]


def test_examples_with_a_hub_run_as_they_stand(folder: Path, tmp_path: Path) -> None:
    """The examples with a Hub publish to a local one and fetch from it."""
    codes = [code for needs_hub, code in EXAMPLES if needs_hub]
    with running_hub(tmp_path / "hub") as hub:
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": hub.token("ann"),
            "SHARDHUB_CACHE": str(tmp_path / "cache"),
            "HF_HOME": str(tmp_path / "hf"),
        }
        for code in codes:
            assert "ann/model-shard-1" in run(code, folder, **environment)


def test_the_way_to_an_answer_is_short() -> None:
    """Splitting, serving two stages, streaming an answer and verifying take less than 30 lines."""
    longest = max(len([line for line in code.splitlines() if line.strip()]) for _, code in EXAMPLES)
    assert longest < 30
