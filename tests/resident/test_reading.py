"""Reading weight files in a process of its own: what it says, what it ends with, and that nobody reads on alone."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Iterator

import psutil
import pytest

from shardhub.errors import HubUnreachable
from shardhub.manifest import Source
from shardhub.resident.reading import read_files
from shardhub.source_ranges import FileRange
from shardhub.splitting.file_order import FileOrder, OrderedFile
from tests.waiting import wait_until

ORDER = FileOrder(
    source=Source(repo="org/model", commit="a" * 40),
    files=(
        OrderedFile(
            key="b" * 64,
            name="layer-00000.safetensors",
            header=base64.b64encode(b"header").decode(),
            ranges=(FileRange(file="model.safetensors", start=0, stop=8),),
        ),
    ),
)


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> Iterator[socket.socket]:
    """A Hub that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("SHARDHUB_CACHE", str(tmp_path))
        yield server


def readers() -> list[psutil.Process]:
    """The processes that read for this one."""
    return [child for child in psutil.Process().children() if "read-files" in child.cmdline()]


def test_whoever_stops_listening_ends_the_reading(silent_hub: socket.socket) -> None:
    """The process is killed as soon as the call ends, although the Hub does not answer."""

    async def stop_early() -> None:
        reports = read_files(ORDER)
        reading = asyncio.ensure_future(anext(reports))
        connection, _ = await asyncio.to_thread(silent_hub.accept)
        assert len(readers()) == 1
        reading.cancel()
        await asyncio.wait({reading})
        await reports.aclose()
        connection.close()

    asyncio.run(stop_early())
    wait_until(lambda: not readers())


def test_what_a_reading_ends_with_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """The error of the process becomes the caller's."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SHARDHUB_CACHE", str(tmp_path))

    async def read() -> None:
        async for _ in read_files(ORDER):
            pass

    with pytest.raises(HubUnreachable):
        asyncio.run(read())
    assert readers() == []


@pytest.mark.parametrize("header", ["not base64!", "a"])
def test_malformed_orders_are_refused(header: str) -> None:
    """A header that is not base64 is no order."""
    with pytest.raises(ValueError, match="base64"):
        OrderedFile(key="b" * 64, name="layer-00000.safetensors", header=header, ranges=())


def test_only_a_source_on_a_hub_can_be_ordered() -> None:
    """Other machines cannot read a folder of this one."""
    with pytest.raises(ValueError, match="every machine"):
        FileOrder(source=Source(repo=None, commit=None), files=ORDER.files)
