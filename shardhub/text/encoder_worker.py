"""The process in which untrusted tokenizers run: `python -m shardhub.text.encoder_worker`.

Its first input line is `{"tokenizer", "plain_special_tokens"}`, where `tokenizer` is the JSON of tokenizer.json. Then
it reads one JSON request per line, `{"text", "add_special_tokens", "max_ids", "ids"}`, and answers each with one JSON
line: `{"more"}` with the number of ids if it exceeds `max_ids`, else `{"ids"}` if they are requested, or `{"error"}`.
It imports tokenizers and the standard library only.

A tokenizer has its own expressions and rules, which may panic in the library's Rust code or never finish (measured: 12
million blanks with a well-known model's expression; a rule that doubles a text, applied 32 times).
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from shardhub.text.confinement import serve

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A text of a million tokens takes about a third of this.
MEMORY_BYTES = 1 << 30
# A second limit behind the caller's clock: more than the caller allows a short text, and the same rate for a long one.
CPU_S = 120
# Slow tokenizers process 300 KB per second.
BYTES_PER_S = 100_000
_MAX_MESSAGE_CHARS = 2000


def load(line: bytes) -> Tokenizer:
    """Load the tokenizer from the first line."""
    from tokenizers import Tokenizer

    given = json.loads(line)
    tokenizer = Tokenizer.from_str(given["tokenizer"])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = given["plain_special_tokens"]
    return tokenizer


def answer(line: bytes, tokenizer: Tokenizer) -> bytes:
    """Answer one request. Any failure of the tokenizer becomes an error answer."""
    try:
        request = json.loads(line)
        ids = tokenizer.encode(request["text"], add_special_tokens=request["add_special_tokens"]).ids
        if len(ids) > request["max_ids"]:
            return json.dumps({"more": len(ids)}).encode()
        return json.dumps({"ids": ids} if request["ids"] else {}).encode()
    except BaseException as error:  # noqa: BLE001  (a Rust panic is not an Exception)
        return json.dumps({"error": str(error)[:_MAX_MESSAGE_CHARS]}).encode()


def main() -> None:
    """Answer requests until the input ends."""
    tokenizer = load(sys.stdin.buffer.readline())
    serve(lambda line: answer(line, tokenizer), memory_bytes=MEMORY_BYTES, cpu_s=CPU_S, bytes_per_s=BYTES_PER_S)


if __name__ == "__main__":
    main()
