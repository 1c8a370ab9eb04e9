"""The process in which strangers' tokenizers cut text into tokens: `python -m shardhub.text.encoder_worker`.

Its first line is the tokenizer, `{"tokenizer", "plain_special_tokens"}`, the first as the JSON of tokenizer.json. Then
it reads one JSON request a line, `{"text", "add_special_tokens", "max_ids", "ids"}`, and answers each with one JSON
line: `{"more"}` with their number where there are more than `max_ids`, else `{"ids"}` if they are asked for, or
`{"error"}`. It imports tokenizers and the standard library only.

A tokenizer brings expressions and rules of its own, which may panic in the library's Rust or run without end (measured:
12 million blanks under a well-known model's own expression; a rule that doubles a text, 32 times).
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from shardhub.text.confinement import serve

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A text of a million tokens takes about a third of it.
MEMORY_BYTES = 1 << 30
# Behind the caller's clock: more than it gives a short text, and as much for each byte of a long one.
CPU_S = 120
# Slow tokenizers cut 300 KB a second.
BYTES_PER_S = 100_000
_MAX_MESSAGE_CHARS = 2000


def load(line: bytes) -> Tokenizer:
    """The tokenizer of the first line."""
    from tokenizers import Tokenizer

    given = json.loads(line)
    tokenizer = Tokenizer.from_str(given["tokenizer"])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = given["plain_special_tokens"]
    return tokenizer


def answer(line: bytes, tokenizer: Tokenizer) -> bytes:
    """Answer one request; whatever goes wrong in the tokenizer becomes an answer, too."""
    try:
        request = json.loads(line)
        ids = tokenizer.encode(request["text"], add_special_tokens=request["add_special_tokens"]).ids
        if len(ids) > request["max_ids"]:
            return json.dumps({"more": len(ids)}).encode()
        return json.dumps({"ids": ids} if request["ids"] else {}).encode()
    except BaseException as error:  # noqa: BLE001  (a panic of Rust is no Exception)
        return json.dumps({"error": str(error)[:_MAX_MESSAGE_CHARS]}).encode()


def main() -> None:
    """Answer requests until the input ends."""
    tokenizer = load(sys.stdin.buffer.readline())
    serve(lambda line: answer(line, tokenizer), memory_bytes=MEMORY_BYTES, cpu_s=CPU_S, bytes_per_s=BYTES_PER_S)


if __name__ == "__main__":
    main()
