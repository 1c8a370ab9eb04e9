"""Several things at once in threads."""

from __future__ import annotations

from collections.abc import Callable
from threading import Barrier, Event

import pytest

from shardhub.hub.several import in_threads


@pytest.mark.parametrize("num_threads", [1, 3])
def test_every_item_has_its_result(num_threads: int) -> None:
    """Results come in any order, one for each item."""

    def square(item: int, go_on: Callable[[], None]) -> int:
        go_on()
        return item * item

    assert sorted(in_threads(square, range(20), num_threads=num_threads)) == [item * item for item in range(20)]


def test_first_error_ends_the_others() -> None:
    """An item that would never end is given up when another fails, and no further item begins."""
    begun: set[str] = set()
    both = Barrier(2)

    def work(item: str, go_on: Callable[[], None]) -> None:
        begun.add(item)
        both.wait(60)
        while item == "endless":
            go_on()
        raise ValueError(item)

    with pytest.raises(ValueError, match="failing"):
        list(in_threads(work, ["endless", "failing", "later"], num_threads=2))
    assert begun == {"endless", "failing"}


def test_interrupted_caller_does_not_wait() -> None:
    """Ctrl-C ends the caller at once, although a thread is still waiting; the thread ends at its next check."""
    is_free, ended = Event(), Event()

    def work(item: str, go_on: Callable[[], None]) -> str:
        if item == "quick":
            return item
        try:
            is_free.wait(60)
            go_on()
        finally:
            ended.set()
        return item

    results = in_threads(work, ["waiting", "quick"], num_threads=2)
    assert next(results) == "quick"
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt())  # type: ignore[attr-defined] - it is a generator
    assert not ended.is_set()
    is_free.set()
    assert ended.wait(60)
