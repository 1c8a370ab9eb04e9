"""The models that are measured: SmolLM2-135M-Instruct, and tiny ones that compute next to nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.engine.report import say


def smollm2(dtype: str | None = "float32") -> Path:
    """SmolLM2-135M-Instruct; 4-bit with None."""
    from shardhub.demo.smollm2 import fetch_and_convert

    return fetch_and_convert(None, dtype=dtype, progress=say)


def tiny_model(folder: Path, **changes: Any) -> Path:
    """A llama of six layers of 64 with random weights, and a byte-level tokenizer."""
    from tests import tiny

    config = {**tiny.config("llama"), **changes}
    tiny.save(tiny.build(config), config, folder)
    tiny.save_tokenizer(folder)
    return folder
