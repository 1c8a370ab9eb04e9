"""What a step of a stage gives: tensors for the next stage, or the tokens that were drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardhub.protocol import TopTokens
from shardhub.tensors import RawTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The result of drawing from one session's logits.

    Attributes:
        tokens: Drawn tokens: one, or more if drafts were right.
        logprobs: Their log probabilities.
        top: The likeliest tokens at each of them, if the session asks for any.
        target_logprobs, target_top: The same for the given targets.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top: tuple[TopTokens, ...] = ()
    target_logprobs: tuple[float, ...] = ()
    target_top: tuple[TopTokens, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Advanced:
    """The result of one step.

    Attributes:
        crossings: Tensors for the next stage; empty on the last.
        drawn: The result for each session; empty if no token was asked for.
    """

    crossings: Mapping[str, RawTensor]
    drawn: tuple[Drawn, ...]
