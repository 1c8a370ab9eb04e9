"""Answers of the Responses API that clients refer to later: in memory, bounded for each key."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# Of one key. A long session of a coding agent is some hundred answers of a megabyte together.
MAX_ANSWERS = 1024
MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswer:
    """An answer, and what it answered.

    Attributes:
        previous: Id of the answer it follows.
        items: Ids of its items, sent and said.
        body: The items that were sent, and the whole response, as JSON.
    """

    id: str
    previous: str | None
    items: tuple[str, ...]
    body: bytes

    @property
    def input(self) -> list[dict[str, Any]]:
        """The items that were sent with the request, each with an id."""
        return self.parsed()[0]

    @property
    def response(self) -> dict[str, Any]:
        """What was answered."""
        return self.parsed()[1]

    def parsed(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The items that were sent, and the response. It takes a second for 100 MB."""
        body = json.loads(self.body)
        return body["input"], body["response"]

    def all_items(self) -> list[dict[str, Any]]:
        """The items that were sent and said, in order."""
        sent, response = self.parsed()
        return [*sent, *response["output"]]


def is_reference(item: dict[str, Any]) -> bool:
    """Whether an item only names another one; its type may be missing. Source: openai-python, ItemReference."""
    kind = item.get("type")
    return kind == "item_reference" or (kind is None and "role" not in item and "id" in item)


class ResponseStore:
    """Keeps the answers of all keys, each by itself. Any thread may use it.

    Args:
        max_answers, max_bytes: Of one key.
    """

    def __init__(self, *, max_answers: int = MAX_ANSWERS, max_bytes: int = MAX_BYTES) -> None:
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._by_key: dict[str, _Answers] = {}
        self._lock = threading.Lock()

    def add(self, key: str, response: dict[str, Any], sent: Sequence[dict[str, Any]]) -> None:
        """Keep an answer; one that is larger than all that may be kept is not.

        Args:
            key: Whose it is.
            response: As it was answered.
            sent: The items of its request, without those of the answers before it.
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
        """An answer of this key, by its id."""
        with self._lock:
            answers = self._by_key.get(key)
            return answers.use(name) if answers is not None else None

    def remove(self, key: str, name: str) -> bool:
        """Forget an answer; whether it was there."""
        with self._lock:
            answers = self._by_key.get(key)
            return answers is not None and answers.remove(name)

    def items(self, key: str, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Items that were sent or said, by their ids; those that are not kept are missing.

        An answer is parsed once, however many of its items are asked for.
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
        """All items that led to an answer and its own, the oldest first; None where one of the answers is gone."""
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
    """The answers of one key, the longest unused first."""

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
