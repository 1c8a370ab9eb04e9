"""Text to token ids by a model's own tokenizer, in a process that can be killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from shardhub.errors import ContextExceeded, PromptError
from shardhub.text.encoder_worker import BYTES_PER_S
from shardhub.text.sandbox import Program, Sandboxes

# Number of texts that are encoded concurrently; others wait.
_AT_ONCE = 2
# A worker's CPU time for a short text; a long one gets more, by its bytes.
_SHORT_S = 2.0
# The ids of a longer text are first counted for its beginning: this many characters, then twice as many, and so on.
_FIRST_CHARS = 1 << 16
# A beginning encoded alone may have a few tokens more than within the whole text, but not twice as many.
_SLACK = 2
_BYTES_PER_ID = 16
_ENVELOPE_BYTES = 1 << 16
# The limit if the caller sets none.
MAX_IDS = 1 << 21

ENCODING = Program(
    module="shardhub.text.encoder_worker",
    packages=("shardhub", "tokenizers"),
    subject="The tokenizer",
    cpu_s=_SHORT_S,
    hint="Check that the pipeline's tokenizer works with the installed version of tokenizers.",
)


class Encoder:
    """Encodes texts with one tokenizer.

    Args:
        serialized: Returns the JSON of tokenizer.json.
        plain_special_tokens: Whether names of special tokens in a text are ordinary text.
    """

    def __init__(self, serialized: Callable[[], str], *, plain_special_tokens: bool) -> None:
        def setup() -> bytes:
            return json.dumps({"tokenizer": serialized(), "plain_special_tokens": plain_special_tokens}).encode()

        self._sandboxes = Sandboxes(ENCODING, _AT_ONCE, setup=setup)

    def start(self) -> None:
        """Start a process now, so that the first text does not wait for it."""
        self._sandboxes.start()

    def close(self) -> None:
        """End the processes."""
        self._sandboxes.close()

    def encode(self, text: str, *, add_special_tokens: bool, max_ids: int | None = None) -> list[int]:
        """Encode a text to token ids.

        Args:
            max_ids: Limit of ids. A text that certainly exceeds it is refused before all of it is tokenized.

        Raises:
            ContextExceeded: The text has more ids.
            PromptError: The tokenizer fails, or takes too much time or memory.
        """
        most = MAX_IDS if max_ids is None else _SLACK * max_ids
        at = _FIRST_CHARS
        while at < len(text):
            self._ask(text[:at], add_special_tokens=add_special_tokens, most=most, max_ids=max_ids, ids=False)
            at *= 2
        return self._ask(text, add_special_tokens=add_special_tokens, most=most, max_ids=max_ids, ids=True)

    def _ask(self, text: str, *, add_special_tokens: bool, most: int, max_ids: int | None, ids: bool) -> list[int]:
        request = {"text": text, "add_special_tokens": add_special_tokens, "max_ids": most, "ids": ids}
        line = json.dumps(request, ensure_ascii=False).encode()
        answer: dict[str, Any] = json.loads(
            self._sandboxes.ask(
                line,
                max_answer_bytes=_BYTES_PER_ID * most + _ENVELOPE_BYTES,
                more_cpu_s=len(line) / BYTES_PER_S,
            )
        )
        if "error" in answer:
            why = "".join(char if char.isprintable() else " " for char in str(answer["error"]))
            raise PromptError("The model's tokenizer cannot encode the text.", why=why)
        if "more" in answer:
            raise ContextExceeded(
                f"The text has more than {answer['more'] - 1} tokens.",
                why=f"At most {max_ids if max_ids is not None else MAX_IDS} can be used.",
                hint="Shorten the text.",
                num_tokens=answer["more"],
                most=max_ids,
            )
        return list(answer.get("ids", []))
