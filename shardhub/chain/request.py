"""A request to a chain: a prompt, and how to answer it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from shardhub.chain.drafts import Drafter
from shardhub.errors import ContextExceeded, PromptError
from shardhub.parameters import SamplingParameters


class Grammar(Protocol):
    """A grammar that restricts the tokens of one answer."""

    def mask(self) -> bytes:
        """Bits of the token ids that may come next, the lowest id first. Called in another thread.

        Raises:
            ShardhubError: The grammar does not allow any continuation.
        """

    def accept(self, token: int) -> None:
        """Advance by a drawn token; an error in it is raised by `mask`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt, and how to answer it.

    Attributes:
        prompt: Token ids.
        max_tokens: Most tokens of the answer.
        end_ids: Ids that end the sequence.
        tenant: Owner of the request: tenants take turns when the chain is full, and never share a prefix.
        reuse: Whether KV of earlier requests may be used, and this one's kept.
        drafter: Guesses tokens that a step then verifies together; None decodes one by one.
        progress: Called with the number of prompt ids done and the total.
        grammar: Restricts the answer; with a grammar there are no drafts.
        score: Return log probabilities of the prompt's ids, all but the first; no KV is reused then.
    """

    prompt: Sequence[int]
    parameters: SamplingParameters
    max_tokens: int
    end_ids: Collection[int] = ()
    tenant: str = ""
    reuse: bool = True
    drafter: Drafter | None = None
    progress: Callable[[int, int], None] = lambda done, total: None
    grammar: Grammar | None = None
    score: bool = False

    def check_ids(self, num_rows: int) -> None:
        """Check that the embedding has a row for each id of the prompt; the tokenizer may know more tokens.

        Raises:
            PromptError: An id of the prompt has no row.
        """
        if (most := max(self.prompt, default=0)) >= num_rows:
            raise PromptError(
                f"The prompt contains the token id {most}, which the model does not have.",
                why=f"Its ids are 0 to {num_rows - 1}; the tokenizer has more.",
                hint="Give ids of the model. If the prompt is a text, remove the name of that special token from it.",
            )

    def positions(self, max_context: int) -> int:
        """Positions a session needs for the prompt and its answer.

        Raises:
            PromptError: The prompt is empty.
            ContextExceeded: The prompt leaves no room for a single token.
        """
        if not self.prompt:
            raise PromptError("The prompt is empty.", hint="Give a prompt with some text.")
        if len(self.prompt) + 1 > max_context:
            raise ContextExceeded(
                f"The prompt has {len(self.prompt)} tokens.",
                why=f"The chain's context is {max_context} positions, including the answer.",
                hint="Shorten the prompt, or start the nodes with a larger `context`.",
                num_tokens=len(self.prompt),
                most=max_context,
            )
        return min(len(self.prompt) + self.max_tokens, max_context)
