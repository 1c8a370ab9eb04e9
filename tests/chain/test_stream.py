"""A stream's life: from waiting to one end, by the allowed transitions only."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardhub.chain.request import Request
from shardhub.chain.status import Status
from shardhub.chain.stream import Stream
from shardhub.errors import NodeLost, Overloaded
from shardhub.parameters import SamplingParameters

REQUEST = Request(prompt=[1, 2, 3], parameters=SamplingParameters(), max_tokens=4)
ENDS = {
    "stop": (Stream.stop, Status.FINISHED),
    "end_full": (Stream.end_full, Status.FINISHED),
    "cancel": (Stream.cancel, Status.CANCELLED),
    "fail": (lambda stream: stream.fail(Overloaded("No room.")), Status.FAILED),
}


def test_every_status_leads_to_every_end_and_none_leads_on_from_there() -> None:
    """Any status can lead to each end, and an end is final."""
    ends = [status for status in Status if status.is_end]
    for status in Status:
        if status.is_end:
            assert [following for following in Status if status.may_become(following)] == []
        else:
            assert all(status.may_become(end) for end in ends)


@given(st.lists(st.sampled_from(sorted(ENDS)), min_size=1, max_size=4))
def test_the_first_end_stays(ends) -> None:
    """The first end of a stream stays: later events do not change it."""

    async def run():
        stream = Stream(REQUEST)
        assert stream.status is Status.WAITING
        for end in ends:
            ENDS[end][0](stream)
        expected = ENDS[ends[0]][1]
        assert stream.status is expected
        assert stream.is_done
        assert (stream.finish is not None) == (expected is Status.FINISHED)
        assert (stream.error is not None) == (expected is Status.FAILED)

    asyncio.run(run())


def test_whatever_ends_a_stream_ends_the_work_for_it() -> None:
    """Tasks that wait on behalf of a stream are released when it ends, however it ends."""

    async def run():
        for end, _ in ENDS.values():
            stream = Stream(REQUEST)
            waiting = asyncio.ensure_future(stream.while_wanted(asyncio.Event().wait()))
            await asyncio.sleep(0)
            end(stream)
            with pytest.raises(Overloaded):
                await waiting

    asyncio.run(run())


def test_a_stream_without_a_session_cannot_be_interrupted() -> None:
    """A status that cannot follow is refused, so that a mistake in our code shows where it is made."""

    async def run():
        with pytest.raises(ValueError, match="cannot go from waiting to interrupted"):
            Stream(REQUEST).interrupt(NodeLost("The node is gone."))

    asyncio.run(run())
