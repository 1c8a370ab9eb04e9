"""What a head is asked, and what it gives: prompts and sampling, answers and their usage, scores, status."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shardhub.chain.stream import Finish
from shardhub.parameters import MAX_SEED, SamplingParameters

# A prompt: text that is one message of a user, messages of a chat, or token ids.
Prompt = str | Sequence[Mapping[str, str]] | Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How an answer's tokens are chosen, and when it ends; greedy by default.

    Attributes:
        max_tokens: Most tokens of the answer.
        temperature: 0 takes the most likely token.
        top_p: Keep the most likely tokens with this mass; 1 keeps all.
        top_k: Keep this many of the most likely tokens; 0 keeps all.
        min_p: Keep tokens at least this likely, relative to the most likely one.
        repetition_penalty: On recent tokens; 1 changes nothing.
        seed: Of the draws; None draws one.
        stop: Texts that end the answer, and are not part of it.
        draft: Tokens to guess at once from earlier text and to verify in one pass; 0 goes one by one.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    draft: int = 0

    def with_seed(self) -> Sampling:
        """The same with a seed, drawn where there is none."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(MAX_SEED))

    def parameters(self) -> SamplingParameters:
        """What the last stage is told.

        Raises:
            UsageError: One is out of its range.
        """
        return SamplingParameters(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed or 0,
        )


GREEDY = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an answer took: sizes in tokens, times in seconds since the prompt was sent.

    Attributes:
        num_reused: Of the prompt, whose KV was there already.
        num_drafted, num_accepted: Tokens that were guessed, and guessed right.
        num_recoveries: Lost nodes that it went on after.
        is_exact: Whether none of them can have changed a number.
        tokens_per_s: Rate after the first token.
    """

    num_prompt: int
    num_reused: int
    num_generated: int
    num_drafted: int
    num_accepted: int
    num_recoveries: int
    is_exact: bool
    first_token_s: float
    total_s: float
    tokens_per_s: float

    @property
    def summary(self) -> str:
        """All of it in a line."""
        reused = f" ({self.num_reused} of them reused)" if self.num_reused else ""
        drafts = f", {self.num_accepted} of {self.num_drafted} guesses right" if self.num_drafted else ""
        losses = f", went on after {self.num_recoveries} loss" if self.num_recoveries else ""
        losses += "es" if self.num_recoveries > 1 else ""
        losses += "" if self.is_exact else " (not bit-exact)"
        return (
            f"{self.num_prompt} prompt tokens{reused}, {self.num_generated} generated, "
            f"first after {self.first_token_s:.2f} s, then {self.tokens_per_s:.1f} tokens/s{drafts}{losses}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer.

    Attributes:
        tokens: Ids of its tokens.
        finish: `stop` at its end or at a stop text, `length` where it was cut.
        seed: What it was drawn with.
    """

    text: str
    tokens: tuple[int, ...]
    finish: Finish
    seed: int
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredToken:
    """A token of a scored prompt.

    Attributes:
        logprob: Log probability after what comes before it; None for the first.
    """

    id: int
    text: str
    logprob: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StagesAt:
    """Where some stages run.

    Attributes:
        stages: Their indexes.
        layers: Half-open range of their layers.
        at: Address of the node, or `this process`.
        next: How their output goes on: `dial` to the next node, or `opener`, by this process.
        round_trip_s, bytes_per_s: To the stage after them; None where that was not measured.
    """

    stages: tuple[int, ...]
    layers: tuple[int, int]
    at: str
    next: str
    round_trip_s: float | None
    bytes_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadStatus:
    """A live chain.

    Attributes:
        context: Positions of a session.
        stages: Where each runs, in order; several nodes may serve the same.
        inexact: What is inexact about the chain's numbers, if anything.
    """

    pipeline: str
    pipeline_id: str
    context: int
    stages: tuple[StagesAt, ...]
    inexact: str | None
