"""The specification of one answer: its prompt, its limits and the tools it may call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shardhub.chain.request import Grammar
from shardhub.gateway.masks import TokenRules
from shardhub.gateway.segments import Segmenter
from shardhub.gateway.toolcalls import CallFormats
from shardhub.parameters import SamplingParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The tools an answer may call.

    Attributes:
        formats: How the model writes calls.
        known: The tools.
        forced: Names of the functions one of which must be called; empty where none must. The answer is then nothing
            but a call: the arguments for the only name, or an object that names one of several.
        one_call: The answer ends after its first call.
    """

    formats: CallFormats
    known: Sequence[dict[str, Any]]
    forced: Sequence[str] = ()
    one_call: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """The specification of one answer.

    Attributes:
        prompt: Token ids.
        stops: Strings that end the answer and are not part of it. They are not looked for in reasoning.
        end_ids: Token ids that end the answer.
        tenant: The digest of the caller's key.
        continues: The answer's text continues the prompt's text.
        keeps_stop: The stop string that ended the answer is part of it.
        rules: Which tokens the answer may hold, whatever its text.
        segmenter: Separates the answer from reasoning; None where all of it is text.
        score: Whether to compute the log probabilities of the prompt.
        likelihoods: Whether to report each token and its log probability.
    """

    prompt: Sequence[int]
    parameters: SamplingParameters
    max_tokens: int
    stops: Sequence[str] = ()
    end_ids: frozenset[int] = frozenset()
    tenant: str = ""
    continues: bool = False
    keeps_stop: bool = False
    rules: TokenRules | None = None
    segmenter: Segmenter | None = None
    tools: Tools | None = None
    grammar: Grammar | None = None
    score: bool = False
    likelihoods: bool = False
