"""What is asked of a chain: a prompt, and how it is to be answered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from shardhub.chain.drafts import Drafter
from shardhub.errors import ContextExceeded, PromptError
from shardhub.parameters import SamplingParameters


class Grammar(Protocol):
    """What the tokens of one answer may be."""

    def mask(self) -> bytes:
        """A bit for each token id that may come next, the lowest first. Called in another thread.

        Raises:
            ShardhubError: The grammar cannot go on.
        """

    def accept(self, token: int) -> None:
        """Go on with a token that was drawn; what is wrong with it, `mask` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a chain.

    Attributes:
        prompt: Token ids.
        max_tokens: Most tokens of the answer.
        end_ids: Ids that end the sequence.
        tenant: Whose it is: tenants take turns when the chain is full, and share no prefix.
        reuse: Whether KV of earlier requests may be used, and this one's kept.
        drafter: Guesses tokens that a step then verifies together; None goes one by one.
        progress: Told of prompt ids done and in all.
        grammar: What the answer may be; with one there are no drafts.
        score: Tell how likely the prompt's ids were, all but the first: nothing of it is reused then.
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
        """Check that the model has a row for each id of the prompt; its tokenizer may know more tokens than it.

        Raises:
            PromptError: It has none for one.
        """
        if (most := max(self.prompt, default=0)) >= num_rows:
            raise PromptError(
                f"The prompt holds the token id {most}, which the model does not know.",
                why=f"Its ids are 0 to {num_rows - 1}; the tokenizer has more.",
                hint="Leave out the name of the special token that stands in the prompt.",
            )

    def positions(self, max_context: int) -> int:
        """Positions a session needs for the prompt and its answer.

        Raises:
            PromptError: The prompt is empty.
            ContextExceeded: It does not leave room for a single token.
        """
        if not self.prompt:
            raise PromptError("The prompt is empty.", hint="Give some text.")
        if len(self.prompt) + 1 > max_context:
            raise ContextExceeded(
                f"The prompt has {len(self.prompt)} tokens.",
                why=f"The chain's context is {max_context} positions, answer included.",
                hint="Shorten it, or start the nodes with a larger `context`.",
                num_tokens=len(self.prompt),
                most=max_context,
            )
        return min(len(self.prompt) + self.max_tokens, max_context)
