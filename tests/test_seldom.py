"""Log lines that remote parties can trigger."""

from __future__ import annotations

import logging

import pytest

from shardhub.seldom import QUIET_S, Seldom


def test_a_line_comes_once_in_a_while_and_counts_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """At most one line is logged in ten seconds, and it counts the events in between."""
    now = 0.0
    seldom = Seldom(logging.getLogger("strangers"), clock=lambda: now)
    for _ in range(1000):
        seldom.warn("odd")
    now = QUIET_S
    seldom.warn("odd")
    now = 2 * QUIET_S
    seldom.warn("odd")
    assert caplog.messages == ["odd", "odd (999 more since the last such line)", "odd"]
