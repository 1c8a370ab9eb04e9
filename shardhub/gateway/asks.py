"""What one answer is to be: its prompt, its limits, and what it may call."""

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
    """What an answer may call.

    Attributes:
        formats: How the model writes calls.
        known: The tools.
        forced: The answer is nothing but a call: the arguments for the only name, or an object that names one of
            several.
        one_call: The answer ends with its first call.
    """

    formats: CallFormats
    known: Sequence[dict[str, Any]]
    forced: Sequence[str] = ()
    one_call: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What one answer is to be.

    Attributes:
        prompt: Token ids.
        stops: Strings that end it; they are not part of it, and count in no reasoning.
        end_ids: Ids that end it.
        tenant: Whose request it is.
        continues: Its text goes on where the prompt's ends.
        keeps_stop: The stop string that ends it is part of it all the same.
        rules: Which tokens it may hold, whatever its text.
        segmenter: Tells the answer from reasoning; None where all of it is text.
        score: Ask how likely the prompt was.
        likelihoods: Tell each token, and how likely it was.
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
