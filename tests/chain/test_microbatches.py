"""Which microbatch a stream joins, and that the choice costs the same however many microbatches there are."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from shardhub.chain.microbatch import Microbatch
from shardhub.chain.microbatches import Microbatches
from shardhub.chain.request import Request
from shardhub.chain.session import ChainSession, Path
from shardhub.chain.stream import Stream
from shardhub.clock import SYSTEM_DICE
from shardhub.parameters import SamplingParameters

PATH = Path((), ())
MAX_ROWS = 4


class StillChain:
    """A chain whose steps never come round."""

    dice = SYSTEM_DICE
    sizes = SimpleNamespace(fit=lambda num_rows, context: True)

    async def send(self, rows, *, lane, verify=False):
        return [asyncio.get_running_loop().create_future() for _ in rows]


def stream_of(length: int) -> Stream:
    """A stream whose session holds this many ids."""
    stream = Stream(Request(prompt=[1], parameters=SamplingParameters(), max_tokens=8))
    session = ChainSession(StillChain(), PATH, context=1 << 16, parameters=SamplingParameters())
    session.ids = [1] * length
    stream.begin(session, rewind_limit=1 << 16)
    return stream


@pytest.fixture
def num_looks(monkeypatch):
    """How often a stream was checked against a microbatch."""
    looks = []
    fits = Microbatch.fits

    def counted(microbatch: Microbatch, stream: Stream) -> bool:
        looks.append(microbatch)
        return fits(microbatch, stream)

    monkeypatch.setattr(Microbatch, "fits", counted)
    return lambda: len(looks)


def test_streams_fill_the_smallest_microbatches_of_their_length() -> None:
    async def run() -> None:
        microbatches = Microbatches(StillChain(), max_rows=MAX_ROWS, number=3)
        for _ in range(7):
            microbatches.join(stream_of(100))
        assert sorted(microbatches.sizes) == [2, 2, 3]
        microbatches.join(stream_of(1000))
        assert sorted(microbatches.sizes) == [1, 2, 2, 3]
        for _ in range(5):
            microbatches.join(stream_of(100))
        assert sorted(microbatches.sizes) == [1, 4, 4, 4]
        assert not microbatches.has_room(stream_of(100))
        assert microbatches.has_room(stream_of(1000))
        microbatches.stop()

    asyncio.run(run())


def test_a_stream_joins_without_a_look_at_full_microbatches(num_looks) -> None:
    async def run() -> None:
        microbatches = Microbatches(StillChain(), max_rows=MAX_ROWS, number=2)
        for _ in range(1000):
            microbatches.join(stream_of(100))
        assert len(microbatches.sizes) == 250
        assert num_looks() < 1000
        microbatches.stop()

    asyncio.run(run())


def test_a_step_tries_few_microbatches_for_a_stream_that_could_move(num_looks) -> None:
    """Where lengths differ and hardly any stream fits elsewhere, a step does not try them all anew."""

    async def run() -> None:
        microbatches = Microbatches(StillChain(), max_rows=MAX_ROWS, number=1)
        for _ in range(3):
            microbatches.join(stream_of(1))
        for exponent in range(1, 16):
            microbatches.join(stream_of(2**exponent))
        (largest,) = (each for each in microbatches._by_path[PATH]._size if len(each) == 3)
        await asyncio.sleep(0)
        before = num_looks()
        assert largest._between_steps()
        assert num_looks() - before == 4
        microbatches.stop()

    asyncio.run(run())
