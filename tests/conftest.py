"""Fixtures that several packages' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardhub.demo.smollm2 import fetch_and_convert


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in float32 as an mlx-lm folder; fetched once and cached between runs."""
    return fetch_and_convert(dtype="float32")


@pytest.fixture(scope="session")
def smollm2_bfloat16() -> Path:
    """SmolLM2-135M-Instruct in bfloat16 as an mlx-lm folder."""
    return fetch_and_convert(dtype="bfloat16")


@pytest.fixture(scope="session")
def smollm2_4bit() -> Path:
    """SmolLM2-135M-Instruct in 4-bit, its embedding in 8-bit, as an mlx-lm folder."""
    return fetch_and_convert(dtype=None)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Writes a real byte-level tokenizer with a chat template, for the vocabulary of the tiny models."""
    from tests import tiny

    return tiny.save_tokenizer
