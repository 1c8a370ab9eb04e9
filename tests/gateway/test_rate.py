"""Tokens a second."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardhub.gateway.rate import WINDOW_S, Rate

moments = st.lists(st.tuples(st.floats(0, 3), st.integers(1, 5), st.integers(0, 2)), max_size=30)


@given(moments)
def test_the_rate_is_of_the_last_moments(steps) -> None:
    """The rate covers the last moments, however often it is read; after a silence it is zero."""
    now = 0.0
    rate = Rate(lambda: now)
    seen = []
    for pause, num, num_asked in steps:
        now += pause
        rate.add(num)
        seen.append((now, num))
        for _ in range(num_asked):
            assert rate.per_s == sum(n for at, n in seen if at > now - WINDOW_S) / WINDOW_S
    now += 2 * WINDOW_S
    assert rate.per_s == 0
