"""A node's start and end."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

from shardhub.engine.engine import EngineSettings
from shardhub.node.lifecycle import NodeSettings, run_node
from tests import cut


def test_sigterm_while_loading_ends_at_once(tmp_path) -> None:
    """SIGTERM does not wait for a stage to load, which may take minutes."""
    pipeline = cut.cut(cut.tiny_model(tmp_path / "model"), tmp_path / "out", ())
    release, is_loading = threading.Event(), threading.Event()
    codes: list[int] = []

    def progress(text: str) -> None:
        if not is_loading.is_set():
            is_loading.set()
            os.kill(os.getpid(), signal.SIGTERM)
        assert release.wait(60)

    async def run() -> int:
        try:
            async with asyncio.timeout(30):
                return await run_node(
                    cut.shards(pipeline, 0),
                    EngineSettings(context=32),
                    NodeSettings(),
                    on_ready=lambda engine, address: codes.append(0),
                    progress=progress,
                    end=codes.append,
                )
        finally:
            assert is_loading.is_set()
            release.set()

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert asyncio.run(run()) == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    assert codes == [128 + signal.SIGTERM]
