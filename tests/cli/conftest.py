"""A Hub that commands push to, and its user `ann`, for the modules that ask for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from huggingface_hub import HfApi

from shardhub.localhub.server import RunningHub
from tests.hub.pushing import Wire, pushing_hub


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningHub, Wire]]:
    """The module's Hub, and the requests that reach it."""
    with pushing_hub(tmp_path_factory.mktemp("hub")) as served:
        yield served


@pytest.fixture(scope="module")
def api(served: tuple[RunningHub, Wire]) -> HfApi:
    """The client of `ann`."""
    return HfApi(endpoint=served[0].endpoint, token=served[0].token("ann"))
