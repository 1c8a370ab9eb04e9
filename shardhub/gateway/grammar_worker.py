"""The process in which untrusted schemas are compiled first: `python -m shardhub.gateway.grammar_worker`.

Reads one JSON request per line, `{"kind", "source"}`, and answers each with one JSON line: `{"grammar"}`, which
llguidance compiled within this process's limits, or `{"error"}`. It imports llguidance and the standard library only.

llguidance bounds the cost of a token of an answer and most of the compilation, but not all of it (measured: `allOf` of
20 expressions never finished and took 70 MB a second), and a thread cannot be killed. A schema that compiles in time
here compiles in the gateway as well.
"""

from __future__ import annotations

import json
import re
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from shardhub.text.confinement import serve

MEMORY_BYTES = 256 * 1024**2
CPU_S = 4
# llguidance's own limit on the work before the first token.
FUEL = 500_000
# Blanks between JSON's tokens: a space, or a line break and its indentation. Without a bound, models sometimes fill the
# context with blanks.
_SPACE = r" |\n[ \t]{0,32}"
_MAX_MESSAGE_CHARS = 2000


def limits() -> LLParserLimits:
    """The limits on compiling a grammar, the same in this worker and in the gateway."""
    return LLParserLimits(initial_lexer_fuel=FUEL, verbose_errors=False)


def compiled(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    """Compile a grammar into a matcher at the beginning of an answer.

    Raises:
        ValueError: The grammar cannot be used; the message is llguidance's.
    """
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    probe = matcher.deep_copy()
    probe.compute_bitmask()  # some errors appear only here
    if probe.is_error():
        raise ValueError(probe.get_error())
    return matcher


def answer(line: bytes, tokenizer: LLTokenizer) -> bytes:
    """Answer one request. Anything wrong with a schema becomes an error answer."""
    try:
        request = json.loads(line)
        grammar = _grammar(request["kind"], request["source"])
        compiled(grammar, tokenizer)
        return json.dumps({"grammar": grammar}).encode()
    except BaseException as error:  # noqa: BLE001  (an untrusted schema can raise anything, or panic)
        return json.dumps({"error": str(error)[:_MAX_MESSAGE_CHARS]}).encode()


def main() -> None:
    """Answer requests until the input ends."""
    # Every byte is a token: compilation does not depend on the vocabulary.
    tokenizer = LLTokenizer("byte")
    answer(b'{"kind": "json", "source": {}}', tokenizer)  # loads now what Python would load on demand
    serve(lambda line: answer(line, tokenizer), memory_bytes=MEMORY_BYTES, cpu_s=CPU_S)


def _grammar(kind: str, source: Any) -> str:
    if kind == "json":
        return str(LLMatcher.grammar_from_json_schema(source, overrides={"whitespace_pattern": _SPACE}))
    if kind == "choice":
        source = "|".join(re.escape(choice) for choice in source)
    return str(LLMatcher.grammar_from_regex(source))


if __name__ == "__main__":
    main()
