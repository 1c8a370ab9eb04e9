"""A Hub on loopback and the real client for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from shardhub.localhub.server import RunningHub, running_hub


@pytest.fixture(autouse=True)
def client_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The client uses caches of the test's own, and leaves no connection open."""
    cache = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    disable_progress_bars()
    yield
    enable_progress_bars()
    huggingface_hub.close_session()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[RunningHub]:
    """An empty Hub, served from a thread."""
    with running_hub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def api(hub: RunningHub) -> HfApi:
    """The client of `ann`, who may write."""
    return HfApi(endpoint=hub.endpoint, token=hub.token("ann"))


@pytest.fixture
def repo(api: HfApi) -> str:
    """A private repo of `ann`'s."""
    return api.create_repo("ann/model", private=True).repo_id
