"""A grammar that begins where the reasoning ends: it constrains the answer and leaves the reasoning free.

vLLM does the same for models whose reasoning cannot be turned off.
"""

from __future__ import annotations

from shardhub.chain.request import Grammar
from shardhub.gateway.segments import Segmenter
from shardhub.text.detokenizer import Detokenizer

_ALL = b"\xff"


class DeferredGrammar:
    """A grammar that applies to the answer, not to the reasoning before it.

    Args:
        grammar: The answer's grammar.
        segmenter: A separate segmenter, which is fed the tokens as they are drawn.
        detokenizer: A separate detokenizer.
    """

    def __init__(self, grammar: Grammar, segmenter: Segmenter, detokenizer: Detokenizer) -> None:
        self._grammar = grammar
        self._segmenter = segmenter
        self._detokenizer = detokenizer
        self._num_bytes = 0

    def mask(self) -> bytes:
        """A bitmask of the token ids that may come next: all of them until the answer begins.

        Raises:
            PromptError: The grammar cannot continue.
        """
        if self._segmenter.is_answering:
            return self._grammar.mask()
        if not self._num_bytes:
            self._num_bytes = len(self._grammar.mask())
        return _ALL * self._num_bytes

    def accept(self, token: int) -> None:
        """Advance by a token that was drawn."""
        if self._segmenter.is_answering:
            self._grammar.accept(token)
        else:
            self._segmenter.feed(self._detokenizer.add(token))
