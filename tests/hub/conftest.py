"""A Hub on loopback, the real client for it, and a faulty network between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from shardhub.hub import pace
from shardhub.hub.cache import Cache
from shardhub.hub.client import hub_api
from shardhub.hub.fetch import Fetcher
from shardhub.hub.ranges import Patience
from shardhub.localhub.server import RunningHub, running_hub
from shardhub.shard import Pipeline
from shardhub.usecases.loop import LoopThread
from tests import cut
from tests.hub import faulty
from tests.hub.published import Published, publish

_numbers = count()


@pytest.fixture(scope="module", autouse=True)
def client_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The client uses caches of the module's own, and leaves no connection open."""
    cache = tmp_path_factory.mktemp("hf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
        for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "SHARDHUB_CACHE"):
            patch.delenv(name, raising=False)
        disable_progress_bars()
        yield
        enable_progress_bars()
        huggingface_hub.close_session()


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """A Hub, served from a thread."""
    with running_hub(tmp_path_factory.mktemp("hub") / "hub") as running:
        yield running


@pytest.fixture(scope="module")
def published(shared_hub: RunningHub, cut_in_two: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Both shards and the pipeline on the Hub; treat them as read-only."""
    api = hub_api(shared_hub.endpoint, shared_hub.token("ann"))
    return publish(api, "ann", cut_in_two, tmp_path_factory.mktemp("published"))


@pytest.fixture
def user() -> str:
    """The name of a user who has no repo yet."""
    return f"user{next(_numbers)}"


@pytest.fixture
def api(shared_hub: RunningHub, user: str) -> HfApi:
    """The client of `user`."""
    return hub_api(shared_hub.endpoint, shared_hub.token(user))


@pytest.fixture
def fresh(api: HfApi, user: str, cut_in_two: Pipeline, tmp_path: Path) -> Published:
    """Both shards and the pipeline in the namespace of `user`, for tests that change them."""
    return publish(api, user, cut_in_two, tmp_path)


@pytest.fixture
def token(shared_hub: RunningHub, user: str) -> str:
    """A token for all namespaces that tests use."""
    return shared_hub.hub.token(user, groups=["ann"])


@pytest.fixture
def net(shared_hub: RunningHub) -> Iterator[faulty.Network]:
    """The network to the Hub, where faults are injected."""
    with faulty.network(shared_hub.endpoint) as proxy:
        yield proxy


@pytest.fixture
def reader(net: faulty.Network, token: str) -> HfApi:
    """A client that reaches the Hub through `net`."""
    return hub_api(net.endpoint, token)


@pytest.fixture(scope="session")
def whole_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Callable[[Path], None]) -> Path:
    """A tiny model's folder with a tokenizer."""
    folder = cut.tiny_model(tmp_path_factory.mktemp("hub") / "model")
    tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def cut_in_two(whole_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The model of `whole_model`, cut in two."""
    return cut.cut(whole_model, tmp_path_factory.mktemp("two"), (3,))


@pytest.fixture
def said() -> list[str]:
    """The messages that the fetcher reported."""
    return []


@pytest.fixture
def waited() -> list[float]:
    """The fetcher's waits for the Hub, in seconds."""
    return []


@pytest.fixture
def stall_timeout_s() -> float:
    """How long to wait for a silent Hub; tests of a silent Hub set less."""
    return 60


@pytest.fixture
def short_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies have to come at the least rate in each second; a read may take as long as before."""
    monkeypatch.setattr(pace, "NUM_TIMEOUTS", 1 / 60)


@pytest.fixture
def patience(said: list[str], waited: list[float], stall_timeout_s: float) -> Patience:
    """A retry policy that does not wait."""
    return Patience(stall_timeout_s=stall_timeout_s, sleep=waited.append, notice=said.append)


@pytest.fixture
def fetcher(reader: HfApi, tmp_path: Path, patience: Patience) -> Iterator[Fetcher]:
    """A fetcher with an empty cache."""
    cache = Cache(tmp_path / "cache")
    yield Fetcher(lambda: reader, cache, patience=patience)
    cache.release()


@pytest.fixture(scope="module")
def loop() -> Iterator[LoopThread]:
    """The loop in which machines of a test answer each other."""
    with LoopThread() as running:
        yield running
