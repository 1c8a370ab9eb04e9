"""Sizes on the command line: memory and context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardhub.checkpoint.positions import own_positions
from shardhub.checkpoint.unread_fields import right_until
from shardhub.errors import UsageError
from shardhub.sizes import parse_size

# Default positions of a plan, or the model's limit if that is smaller. Nodes and heads default to more.
DEFAULT_CONTEXT = 8192


def parse_memory(text: str | None) -> int | None:
    """Parse `12GB`, `512MiB` or a plain number of GB to bytes; None stays None.

    Raises:
        UsageError: The text is not a size.
    """
    return None if text is None else parse_size(text)


def check_sizes(*texts: str | None) -> None:
    """Check sizes that are used later, so that a wrong one is refused before anything is fetched.

    Raises:
        UsageError: A text is not a size.
    """
    for text in texts:
        parse_memory(text)


def default_context(config: Mapping[str, Any], requested: int | None) -> int:
    """Positions a plan assumes: those requested, or the default within the model's limit.

    Raises:
        UsageError: More than the model's limit, or fewer than two.
    """
    own = own_positions(config)
    if requested is None:
        return min(DEFAULT_CONTEXT, own or DEFAULT_CONTEXT)
    return _checked(requested, own)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedContext:
    """Positions of a session on a node or head.

    Attributes:
        positions: Most positions.
        own: The model's own limit; None if it states none.
        may_be_less: Whether fewer are accepted if memory is short, as no number was requested.
        why: What else limits them; empty if nothing does.
    """

    positions: int
    own: int | None
    may_be_less: bool
    why: str = ""

    def line(self, positions: int) -> str:
        """Describe the context at the start.

        Args:
            positions: Positions that memory allows.
        """
        if not self.may_be_less or self.own is None:
            return f"context {positions:,}"
        if positions == self.own:
            return f"context {positions:,} (the model's own)"
        if positions == self.positions:
            return f"context {positions:,} instead of the model's own {self.own:,}: {self.why}"
        return f"context {positions:,} instead of the model's own {self.own:,}, as memory allows; see `context`"


def served_context(config: Mapping[str, Any], requested: int | None) -> ServedContext:
    """Positions of a session: those requested, or the model's own limit as far as its numbers are right.

    Raises:
        UsageError: More than the model's limit, or fewer than two.
    """
    own = own_positions(config)
    if requested is not None:
        return ServedContext(positions=_checked(requested, own), own=own, may_be_less=False)
    right = right_until(config, least=DEFAULT_CONTEXT)
    positions = own or DEFAULT_CONTEXT
    if right is not None and right < positions:
        why = "for longer texts, mlx-lm's numbers are not the model's"
        return ServedContext(positions=right, own=own, may_be_less=True, why=why)
    return ServedContext(positions=positions, own=own, may_be_less=True)


def _checked(requested: int, own: int | None) -> int:
    if requested < 2 or (own is not None and requested > own):
        raise UsageError(
            f"`context` {requested} is out of range.",
            why=f"The model supports 2 to {own or 'any number of'} positions.",
        )
    return requested
