"""Stores answers of the Responses API, to which clients refer later, in memory, with limits for each key."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# Per key. A long session of a coding agent has some hundred answers, about a megabyte in total.
MAX_ANSWERS = 1024
MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswer:
    """A stored answer and its request.

    Attributes:
        previous: Id of the answer before it.
        items: Ids of its input and output items.
        body: The input items and the whole response, as JSON.
    """

    id: str
    previous: str | None
    items: tuple[str, ...]
    body: bytes

    @property
    def input(self) -> list[dict[str, Any]]:
        """The input items of the request, each with an id."""
        return self.parsed()[0]

    @property
    def response(self) -> dict[str, Any]:
        """The response."""
        return self.parsed()[1]

    def parsed(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Parse the input items and the response. Takes a second for 100 MB."""
        body = json.loads(self.body)
        return body["input"], body["response"]

    def all_items(self) -> list[dict[str, Any]]:
        """The input items, then the output items."""
        sent, response = self.parsed()
        return [*sent, *response["output"]]


def is_reference(item: dict[str, Any]) -> bool:
    """Whether an item is a reference to another one; its type may be missing. Source: openai-python, ItemReference."""
    kind = item.get("type")
    return kind == "item_reference" or (kind is None and "role" not in item and "id" in item)


class ResponseStore:
    """Stores the answers of each key separately. Thread-safe.

    Args:
        max_answers, max_bytes: Limits for each key.
    """

    def __init__(self, *, max_answers: int = MAX_ANSWERS, max_bytes: int = MAX_BYTES) -> None:
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._by_key: dict[str, _Answers] = {}
        self._lock = threading.Lock()

    def add(self, key: str, response: dict[str, Any], sent: Sequence[dict[str, Any]]) -> None:
        """Store an answer. An answer larger than `max_bytes` is not stored.

        Args:
            key: The digest of the caller's key.
            response: The response as it was sent.
            sent: The input items of the request, without those of earlier answers.
        """
        items = [{**item, "id": item.get("id") or f"in_{response['id']}_{index}"} for index, item in enumerate(sent)]
        body = json.dumps({"input": items, "response": response}, ensure_ascii=False).encode("utf-8", "replace")
        if len(body) > self._max_bytes:
            return
        own = (item for item in (*items, *response["output"]) if not is_reference(item))
        names = tuple(str(item["id"]) for item in own if item.get("id"))
        answer = StoredAnswer(id=response["id"], previous=response.get("previous_response_id"), items=names, body=body)
        with self._lock:
            answers = self._by_key.setdefault(key, _Answers())
            answers.put(answer)
            while len(answers) > self._max_answers or answers.size_bytes > self._max_bytes:
                answers.drop_oldest()

    def find(self, key: str, name: str) -> StoredAnswer | None:
        """An answer of a key by its id, or None."""
        with self._lock:
            answers = self._by_key.get(key)
            return answers.use(name) if answers is not None else None

    def remove(self, key: str, name: str) -> bool:
        """Delete an answer. Returns whether it existed."""
        with self._lock:
            answers = self._by_key.get(key)
            return answers is not None and answers.remove(name)

    def items(self, key: str, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Input and output items by their ids. Items that are not stored are missing from the result.

        Each answer is parsed once, however many of its items are requested.
        """
        referred = set(names)
        with self._lock:
            answers = self._by_key.get(key)
            holders = map(answers.with_item, referred) if answers is not None else ()
            known = {answer.id: answer for answer in holders if answer is not None}
        items: dict[str, dict[str, Any]] = {}
        for answer in known.values():
            for item in answer.all_items():
                name = str(item.get("id"))
                if name in referred and not is_reference(item):
                    items.setdefault(name, item)
        return items

    def history(self, key: str, name: str) -> list[dict[str, Any]] | None:
        """All items up to and including an answer's, oldest first; None if one of the answers is no longer stored."""
        turns: list[StoredAnswer] = []
        at: str | None = name
        while at is not None:
            answer = self.find(key, at)
            if answer is None or len(turns) > self._max_answers:
                return None
            turns.append(answer)
            at = answer.previous
        return [item for turn in reversed(turns) for item in turn.all_items()]


class _Answers:
    """The answers of one key, least recently used first."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._answers: OrderedDict[str, StoredAnswer] = OrderedDict()
        self._by_item: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def put(self, answer: StoredAnswer) -> None:
        self._answers[answer.id] = answer
        self.size_bytes += len(answer.body)
        self._by_item.update(dict.fromkeys(answer.items, answer.id))

    def use(self, name: str) -> StoredAnswer | None:
        answer = self._answers.get(name)
        if answer is not None:
            self._answers.move_to_end(name)
        return answer

    def with_item(self, name: str) -> StoredAnswer | None:
        return self.use(self._by_item.get(name, ""))

    def drop_oldest(self) -> None:
        self.remove(next(iter(self._answers)))

    def remove(self, name: str) -> bool:
        answer = self._answers.pop(name, None)
        if answer is None:
            return False
        self.size_bytes -= len(answer.body)
        for item in answer.items:
            if self._by_item.get(item) == name:
                del self._by_item[item]
        return True
