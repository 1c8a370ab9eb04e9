"""Stored answers, which clients refer to."""

from __future__ import annotations

import pytest

from shardhub.gateway.response_store import ResponseStore


def answer(name, previous=None):
    output = [{"id": f"msg_{name}", "type": "message", "role": "assistant", "content": name}]
    return {"id": f"resp_{name}", "previous_response_id": previous, "output": output}


def sent(text):
    return [{"type": "message", "role": "user", "content": text}]


def test_an_answers_history_is_all_that_led_to_it() -> None:
    """The history has all inputs and answers that led to an answer, the oldest first."""
    store = ResponseStore()
    store.add("key", answer("a"), sent("1"))
    store.add("key", answer("b", "resp_a"), sent("2"))
    history = store.history("key", "resp_b")
    assert [item["content"] for item in history] == ["1", "a", "2", "b"]
    assert store.items("key", ["msg_a"])["msg_a"]["content"] == "a"
    assert store.items("key", [history[0]["id"]])[history[0]["id"]]["content"] == "1"


def test_another_keys_answers_are_not_there() -> None:
    """Another key's answers cannot be read by their id or an item's id, nor deleted."""
    store = ResponseStore()
    store.add("key", answer("a"), sent("1"))
    assert store.find("other", "resp_a") is None
    assert store.items("other", ["msg_a"]) == {}
    assert store.history("other", "resp_a") is None
    assert not store.remove("other", "resp_a")
    assert store.find("key", "resp_a") is not None


def test_the_longest_unused_go_first() -> None:
    """The least recently used answers are evicted, by number and by bytes; an active session keeps its history."""
    store = ResponseStore(max_answers=3)
    for index, name in enumerate("abcd"):
        store.add("key", answer(name), sent("x"))
        if index == 2:
            assert store.history("key", "resp_a") is not None
    assert store.find("key", "resp_b") is None
    assert store.items("key", ["msg_b"]) == {}
    assert store.find("key", "resp_a") is not None
    small = ResponseStore(max_bytes=600)
    for name in "abcdefgh":
        small.add("key", answer(name), sent("x" * 100))
    assert small.find("key", "resp_a") is None
    assert small.find("key", "resp_h") is not None
    small.add("key", answer("huge"), sent("x" * 1000))
    assert small.find("key", "resp_huge") is None
    assert small.find("key", "resp_h") is not None


def test_a_history_with_a_gap_is_none() -> None:
    """A history that lost an answer is refused, as half a conversation would be answered wrongly."""
    store = ResponseStore()
    store.add("key", answer("a"), sent("1"))
    store.add("key", answer("b", "resp_a"), sent("2"))
    assert store.remove("key", "resp_a")
    assert not store.remove("key", "resp_a")
    assert store.history("key", "resp_b") is None


@pytest.mark.parametrize("kind", [{"type": "item_reference"}, {}])
def test_a_reference_never_stands_for_itself(kind) -> None:
    """A stored reference to an item always leads to the item itself, even after several turns."""
    store = ResponseStore()
    store.add("key", answer("a"), sent("1"))
    store.add("key", answer("b"), [{"id": "msg_a", **kind}, *sent("2")])
    assert store.items("key", ["msg_a"])["msg_a"]["content"] == "a"
    assert store.remove("key", "resp_a")
    assert store.items("key", ["msg_a"]) == {}
