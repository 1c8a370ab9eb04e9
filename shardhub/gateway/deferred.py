"""A grammar that begins where the reasoning ends: what a model thinks has no shape, its answer has.

As vLLM does where a model thinks whatever it is told.
"""

from __future__ import annotations

from shardhub.chain.request import Grammar
from shardhub.gateway.segments import Segmenter
from shardhub.text.detokenizer import Detokenizer

_ALL = b"\xff"


class DeferredGrammar:
    """A grammar for the answer alone.

    Args:
        grammar: The answer's.
        segmenter: Of its own: it is fed the tokens as they are drawn.
        detokenizer: Of its own, too.
    """

    def __init__(self, grammar: Grammar, segmenter: Segmenter, detokenizer: Detokenizer) -> None:
        self._grammar = grammar
        self._segmenter = segmenter
        self._detokenizer = detokenizer
        self._num_bytes = 0

    def mask(self) -> bytes:
        """A bit for each token id that may come next: all of them, until the answer begins.

        Raises:
            PromptError: The grammar cannot go on.
        """
        if self._segmenter.is_answering:
            return self._grammar.mask()
        if not self._num_bytes:
            self._num_bytes = len(self._grammar.mask())
        return _ALL * self._num_bytes

    def accept(self, token: int) -> None:
        """Go on with a token that was drawn."""
        if self._segmenter.is_answering:
            self._grammar.accept(token)
        else:
            self._segmenter.feed(self._detokenizer.add(token))
