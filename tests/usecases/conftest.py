"""A model on the Hub of the modules that have one, of which `api` is the client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tests.cut import tiny_model


@pytest.fixture(scope="module")
def model(api: HfApi, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Callable[[Path], None]) -> str:
    """A tiny model with tied embeddings on the Hub."""
    folder = tiny_model(tmp_path_factory.mktemp("model") / "tiny", tie_word_embeddings=True)
    tiny_tokenizer(folder)
    repo = api.create_repo("ann/tiny").repo_id
    api.upload_folder(repo_id=repo, folder_path=folder)
    return repo
