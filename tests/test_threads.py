"""Thread limits, detected before a library needs its threads."""

from __future__ import annotations

import threading

import pytest

from shardhub.errors import ResourceError
from shardhub.threads import check_threads


def test_threads_are_tried_and_end() -> None:
    """Where all threads can be started, all of them have ended afterwards."""
    before = threading.active_count()
    check_threads(8)
    assert threading.active_count() == before


def test_lack_of_threads_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how many are needed and how many could be started; those have ended."""
    start, before = threading.Thread.start, threading.active_count()
    allowed = iter([True, True])

    def limited(thread: threading.Thread) -> None:
        if not next(allowed, False):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(ResourceError) as caught:
        check_threads(5)
    assert "5 more threads are needed, but only 2 could be started" in caught.value.why
    assert threading.active_count() == before
