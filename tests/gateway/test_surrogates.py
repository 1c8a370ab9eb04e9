"""Lone surrogates in JSON."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardhub.gateway.surrogates import without_lone_surrogates

TEXTS = st.text(st.characters() | st.sampled_from("\ud83d\ude00\\u"))
MANY = 200_000
SOON_S = 10


@given(st.recursive(TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)))
def test_only_lone_halves_are_replaced(value) -> None:
    """Surrogate pairs and escaped backslashes stay as they are."""
    assert json.loads(without_lone_surrogates(json.dumps(value).encode())) == _whole(value)


@pytest.mark.parametrize("piece", [rb"\ud83d", rb"\ude00", rb"\ud83d\ude00", rb"\\ud83d", rb"\n"])
def test_a_large_body_takes_little_time(piece) -> None:
    """The time is proportional to the body's length."""
    started = time.monotonic()
    json.loads(without_lone_surrogates(b'"' + piece * MANY + b'"'))
    assert time.monotonic() - started < SOON_S


def _whole(value):
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return {_whole(name): _whole(item) for name, item in value.items()}
