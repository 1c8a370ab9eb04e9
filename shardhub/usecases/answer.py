"""Inputs and results of a head: prompts and sampling, answers and their usage, scores, status."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shardhub.chain.stream import Finish
from shardhub.limits import MAX_DRAFT
from shardhub.parameters import MAX_SEED, SamplingParameters
from shardhub.setting_checks import check_settings

# A prompt: text, which is one user message; the messages of a chat; or token ids.
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
        repetition_penalty: Penalty on recent tokens; 1 changes nothing.
        seed: Seed of the draws; None draws a random one.
        stop: Texts that end the answer, and are not part of it.
        draft: Tokens to guess at once from earlier text and to verify in one pass; 0 decodes one by one.
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

    def __post_init__(self) -> None:
        check_settings(self, max_tokens=(1, None), draft=(0, MAX_DRAFT), seed=(0, MAX_SEED))
        self.parameters()

    def with_seed(self) -> Sampling:
        """Return the same settings with a seed, drawn at random if there is none."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(MAX_SEED))

    def parameters(self) -> SamplingParameters:
        """Sampling parameters for the last stage.

        Raises:
            UsageError: A value is out of range.
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
    """Usage of an answer: sizes in tokens, times in seconds since the prompt was sent.

    Attributes:
        num_reused: Prompt tokens whose KV was reused.
        num_drafted, num_accepted: Tokens that were guessed, and those guessed right.
        num_recoveries: Losses of nodes that it survived.
        is_exact: Whether none of these losses can have changed a number.
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
        losses = f", recovered from {self.num_recoveries} loss" if self.num_recoveries else ""
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
        finish: `stop` at its end or at a stop text, `length` if it was cut; None if it was closed before its end.
        seed: Seed of its draws.
    """

    text: str
    tokens: tuple[int, ...]
    finish: Finish | None
    seed: int
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredToken:
    """A token of a scored prompt.

    Attributes:
        logprob: Log probability given the tokens before it; None for the first.
    """

    id: int
    text: str
    logprob: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StagesAt:
    """Where some stages run.

    Attributes:
        stages: Indices of the stages.
        layers: Half-open range of their layers.
        at: Address of the node, or `this process`.
        next: How their output goes on: `dial` to the next node, or `opener` through this process.
        round_trip_s, bytes_per_s: To the next stage; None if not measured.
    """

    stages: tuple[int, ...]
    layers: tuple[int, int]
    at: str
    next: str
    round_trip_s: float | None
    bytes_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadStatus:
    """Status of a live chain.

    Attributes:
        context: Most positions of a session.
        stages: Where each stage runs, in order; several nodes may serve the same stage.
        inexact: What is inexact about the chain's numbers, if anything.
    """

    pipeline: str
    pipeline_id: str
    context: int
    stages: tuple[StagesAt, ...]
    inexact: str | None
