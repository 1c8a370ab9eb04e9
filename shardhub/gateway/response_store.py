"""Answers of the Responses API that clients refer to later: in memory, bounded for each key."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
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
        items: list[dict[str, Any]] = json.loads(self.body)["input"]
        return items

    @property
    def response(self) -> dict[str, Any]:
        """What was answered."""
        response: dict[str, Any] = json.loads(self.body)["response"]
        return response


class ResponseStore:
    """Keeps the answers of all keys, each by itself.

    Args:
        max_answers, max_bytes: Of one key.
    """

    def __init__(self, *, max_answers: int = MAX_ANSWERS, max_bytes: int = MAX_BYTES) -> None:
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._by_key: dict[str, _Answers] = {}

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
        names = tuple(str(item["id"]) for item in (*items, *response["output"]) if item.get("id"))
        answer = StoredAnswer(id=response["id"], previous=response.get("previous_response_id"), items=names, body=body)
        answers = self._by_key.setdefault(key, _Answers())
        answers.put(answer)
        while len(answers) > self._max_answers or answers.size_bytes > self._max_bytes:
            answers.drop_oldest()

    def find(self, key: str, name: str) -> StoredAnswer | None:
        """An answer of this key, by its id."""
        answers = self._by_key.get(key)
        return answers.use(name) if answers is not None else None

    def remove(self, key: str, name: str) -> bool:
        """Forget an answer; whether it was there."""
        answers = self._by_key.get(key)
        return answers is not None and answers.remove(name)

    def item(self, key: str, name: str) -> dict[str, Any] | None:
        """An item that was sent or said, by its id."""
        answers = self._by_key.get(key)
        answer = answers.with_item(name) if answers is not None else None
        if answer is None:
            return None
        return next((item for item in (*answer.input, *answer.response["output"]) if item.get("id") == name), None)

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
        return [item for turn in reversed(turns) for item in (*turn.input, *turn.response["output"])]


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
