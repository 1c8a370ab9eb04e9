"""Stop strings end a text at the same place however it arrives, and are never shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardhub.errors import PromptError
from shardhub.text.stops import MAX_STOP_CHARS, MAX_STOPS, StopMatcher

# Few letters, so that stops overlap themselves, each other and the borders of pieces.
LETTERS = st.text(alphabet="ab€", max_size=30)
STOPS = st.lists(st.text(alphabet="ab€", min_size=1, max_size=5), max_size=4)
PIECES = st.lists(st.text(alphabet="ab€", max_size=4), max_size=12)


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """A naive reference: the text before the first complete stop string, and that stop string."""
    matches = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    if not matches:
        return text, None
    _, start, stop = min(matches)
    return text[:start], stop


@given(STOPS, PIECES)
def test_matcher_equals_a_search_of_the_whole_text(stops: list[str], pieces: list[str]) -> None:
    """Shown text and matched stop equal those of a search in the whole text."""
    matcher = StopMatcher(stops)
    shown = "".join(matcher.feed(piece) for piece in pieces) + matcher.finish()
    assert (shown, matcher.stop) == first_stop("".join(pieces), stops)


@given(STOPS, PIECES)
def test_matcher_holds_back_only_what_may_become_a_stop(stops: list[str], pieces: list[str]) -> None:
    """The text held back is always the shortest beginning of a stop string that could still be completed."""
    matcher, shown, fed = StopMatcher(stops), "", ""
    for piece in pieces:
        shown += matcher.feed(piece)
        fed += piece
        if matcher.stop is not None:
            return
        possible = [fed[i:] for i in range(len(fed)) if any(stop.startswith(fed[i:]) for stop in stops)]
        assert shown == fed.removesuffix(possible[0] if possible else "")


@given(STOPS, LETTERS)
def test_matcher_shows_nothing_after_a_stop(stops: list[str], text: str) -> None:
    """Text after a stop string is dropped."""
    matcher = StopMatcher([*stops, "END"])
    before = matcher.feed(f"{text}END")
    assert matcher.stop is not None
    assert matcher.feed("more") + matcher.finish() == ""
    assert text.startswith(before)


@pytest.mark.parametrize(
    ("stops", "disagreement"),
    [
        ([""], "0 characters"),
        (["x" * (MAX_STOP_CHARS + 1)], f"{MAX_STOP_CHARS + 1} characters"),
        ([str(i) for i in range(MAX_STOPS + 1)], f"{MAX_STOPS + 1} were given"),
    ],
)
def test_stops_out_of_bounds_are_refused(stops: list[str], disagreement: str) -> None:
    """Too many, empty and too long stop strings are refused with both values."""
    with pytest.raises(PromptError, match=disagreement):
        StopMatcher(stops)
