"""The model of the simulation: a pure function of token ids, in which every mistake changes the result.

A layer's KV at a position is a hash of its input there, of all KV before it, and of the shape of the step that brought
it; its output is a hash of the two. A token is a hash of the last layer's output, of the parameters of the draw and of
the ids before it. So a position that is missing, doubled, stale or from another session, or a replay in other shapes,
changes all tokens after it.

Python's hash of a tuple of integers is the same in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shardhub.parameters import SamplingParameters

VOCAB_SIZE = 251
# Ids that end a sequence: one in 50 draws.
END_IDS = (0, 1, 2, 3, 4)
_SEED = 0x5EED


@dataclass(slots=True)
class LayerKv:
    """A layer's KV: a digest of everything up to each position."""

    digests: list[int] = field(default_factory=list)

    def forward(self, layer: int, value: int, *, start: int, length: int) -> int:
        """Take one more position, and return the layer's output there.

        Args:
            layer: Index of the layer.
            value: Its input.
            start, length: Of the step that brings the position; zeros where its shape does not matter.
        """
        before = self.digests[-1] if self.digests else _SEED
        digest = hash((before, value, len(self.digests), start, length))
        self.digests.append(digest)
        return hash((layer, value, digest))


def embedding(token: int) -> int:
    """Input of the first layer."""
    return hash((_SEED, token))


def draw(output: int, ids: Sequence[int], parameters: SamplingParameters, allowed: bytes | None = None) -> int:
    """The token that follows `ids`, given the last layer's output at the last of them."""
    chance = (parameters.seed, parameters.choice, len(ids)) if parameters.temperature > 0 else (0, 0, 0)
    token = hash((output, *chance, *ids[-3:])) % VOCAB_SIZE
    if allowed is None:
        return token
    return next(
        candidate % VOCAB_SIZE
        for candidate in range(token, token + VOCAB_SIZE)
        if _bit(allowed, candidate % VOCAB_SIZE)
    )


def logprob(output: int, token: int) -> float:
    """Log probability of a token."""
    return -(hash((output, token)) % 4096) / 256


def _bit(allowed: bytes, token: int) -> bool:
    return token // 8 < len(allowed) and bool(allowed[token // 8] >> (token % 8) & 1)


class WholeModel:
    """All layers in one place, without a network: the reference for every answer.

    Args:
        num_layers: Number of layers.
        chunk: Ids of every step of a prompt but its last id; None where shapes do not matter.
    """

    def __init__(self, num_layers: int, chunk: int | None) -> None:
        self._layers = [LayerKv() for _ in range(num_layers)]
        self._chunk = chunk

    def answer(
        self,
        prompt: Sequence[int],
        parameters: SamplingParameters,
        num_tokens: int,
        mask_at: Callable[[int], bytes] | None = None,
    ) -> list[int]:
        """The tokens of an answer, up to a limit or the end token.

        Args:
            mask_at: Which ids may stand at each place of the answer.
        """
        ids = list(prompt)
        output = 0
        for position, token in enumerate(ids):
            output = self._forward(token, position, len(ids) - 1)
        answer: list[int] = []
        while len(answer) < num_tokens:
            token = draw(output, ids, parameters, mask_at(len(answer)) if mask_at is not None else None)
            answer.append(token)
            if token in END_IDS:
                break
            output = self._forward(token, len(ids), 0)
            ids.append(token)
        return answer

    def likelihoods(self, prompt: Sequence[int]) -> list[float]:
        """Log probabilities of a prompt's ids from the second on."""
        outputs = [self._forward(token, at, len(prompt) - 1) for at, token in enumerate(prompt)]
        return [logprob(output, token) for output, token in zip(outputs, prompt[1:], strict=False)]

    def _forward(self, token: int, position: int, num_chunked: int) -> int:
        start, length = 0, 0
        if self._chunk is not None:
            start, length = position, 1
            if position < num_chunked:
                start = position - position % self._chunk
                length = min(self._chunk, num_chunked - start)
        value = embedding(token)
        for index, layer in enumerate(self._layers):
            value = layer.forward(index, value, start=start, length=length)
        return value
