"""The process in which strangers' schemas are compiled first: `python -m shardhub.gateway.grammar_worker`.

Reads one JSON request a line, `{"kind", "source"}`, and answers each with one JSON line: `{"grammar"}`, which
llguidance compiled within this process's bounds, or `{"error"}`. It imports llguidance and the standard library only.

llguidance bounds what a token of an answer may cost, and much of compiling, but not all of it (measured: `allOf` of 20
expressions ran without end and took 70 MB a second), and a thread cannot be ended. What ended here in time ends in the
gateway, too.
"""

from __future__ import annotations

import json
import re
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from shardhub.text.confinement import serve

MEMORY_BYTES = 256 * 1024**2
CPU_S = 4
# llguidance's own bound on the work before the first token.
FUEL = 500_000
# Between JSON's tokens: a space, or a new line and what it is indented by. Models that may fill a context with blanks
# sometimes do.
_SPACE = r" |\n[ \t]{0,32}"
_MAX_MESSAGE_CHARS = 2000


def limits() -> LLParserLimits:
    """The bounds that a grammar is compiled within, here as in the gateway."""
    return LLParserLimits(initial_lexer_fuel=FUEL, verbose_errors=False)


def compiled(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    """A matcher of a grammar, at the beginning of an answer.

    Raises:
        ValueError: The grammar cannot be used; llguidance says why.
    """
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    probe = matcher.deep_copy()
    probe.compute_bitmask()  # some faults show only then
    if probe.is_error():
        raise ValueError(probe.get_error())
    return matcher


def answer(line: bytes, tokenizer: LLTokenizer) -> bytes:
    """Answer one request; whatever is wrong with a schema becomes an answer, too."""
    try:
        request = json.loads(line)
        grammar = _grammar(request["kind"], request["source"])
        compiled(grammar, tokenizer)
        return json.dumps({"grammar": grammar}).encode()
    except BaseException as error:  # noqa: BLE001  (a stranger's schema can make it raise anything, or panic)
        return json.dumps({"error": str(error)[:_MAX_MESSAGE_CHARS]}).encode()


def main() -> None:
    """Answer requests until the input ends."""
    # Its tokens are the bytes: compiling does not depend on the vocabulary.
    tokenizer = LLTokenizer("byte")
    answer(b'{"kind": "json", "source": {}}', tokenizer)  # what Python loads on demand it loads now
    serve(lambda line: answer(line, tokenizer), memory_bytes=MEMORY_BYTES, cpu_s=CPU_S)


def _grammar(kind: str, source: Any) -> str:
    if kind == "json":
        return str(LLMatcher.grammar_from_json_schema(source, overrides={"whitespace_pattern": _SPACE}))
    if kind == "choice":
        source = "|".join(re.escape(choice) for choice in source)
    return str(LLMatcher.grammar_from_regex(source))


if __name__ == "__main__":
    main()
