"""Shaped answers that a model would fill with blanks."""

from __future__ import annotations

import json

from llguidance import LLTokenizer

from shardhub.gateway.blanks import MAX_BLANKS, blanks_of
from shardhub.gateway.grammar_worker import answer, compiled
from shardhub.gateway.structured import LlGrammar
from shardhub.text.tokenizer import Tokenizer
from tests import tiny

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}


def drawn(tokenizer: Tokenizer, likely: str) -> str:
    """The text of a model that prefers one character wherever it is allowed, and else the lowest id."""
    ends = sorted(tokenizer.eos_ids)
    request = json.dumps({"kind": "json", "source": SCHEMA}).encode()
    source = json.loads(answer(request, LLTokenizer("byte")))["grammar"]
    matcher = compiled(source, LLTokenizer(tokenizer.serialized(), eos_token=ends))
    grammar = LlGrammar(matcher, blanks_of(tokenizer))
    (favourite,) = tokenizer.encode(likely, add_special_tokens=False)
    ids: list[int] = []
    for _ in range(4 * MAX_BLANKS):
        bits = int.from_bytes(grammar.mask(), "little")
        token = favourite if bits >> favourite & 1 else (bits & -bits).bit_length() - 1
        if token in ends:
            break
        ids.append(token)
        grammar.accept(token)
    return b"".join(map(tokenizer.token_bytes, ids)).decode()


def test_a_text_of_blanks_ends(tmp_path) -> None:
    """A model that writes blanks wherever they are allowed still reaches the end of its answer."""
    tiny.save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny.config("llama")))
    assert json.loads(drawn(Tokenizer(tmp_path), " ")) == {"a": " " * MAX_BLANKS}
