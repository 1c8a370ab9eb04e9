"""Sizes on the command line: memory and context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardhub.checkpoint.positions import own_positions
from shardhub.checkpoint.unread_fields import right_until
from shardhub.errors import UsageError
from shardhub.sizes import parse_size

# Positions a plan counts with unless told otherwise; less where the model takes less. What runs a model takes more.
DEFAULT_CONTEXT = 8192


def parse_memory(text: str | None) -> int | None:
    """Bytes of `12GB`, `512MiB` or a plain number of GB; None stays None.

    Raises:
        UsageError: It is no size.
    """
    return None if text is None else parse_size(text)


def default_context(config: Mapping[str, Any], asked: int | None) -> int:
    """Positions a plan counts with: what was asked for, or the default within what the model takes.

    Raises:
        UsageError: More than the model takes, or less than two.
    """
    own = own_positions(config)
    if asked is None:
        return min(DEFAULT_CONTEXT, own or DEFAULT_CONTEXT)
    return _checked(asked, own)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedContext:
    """Positions of a session, for what runs a model.

    Attributes:
        positions: How many, at most.
        own: What the model takes by itself; None where it does not say.
        may_be_less: Whether fewer will do where memory is short: nobody asked for a number.
        why: What else limits them; empty where nothing does.
    """

    positions: int
    own: int | None
    may_be_less: bool
    why: str = ""

    def line(self, positions: int) -> str:
        """What is said at start.

        Args:
            positions: What there is memory for.
        """
        if not self.may_be_less or self.own is None:
            return f"context {positions:,}"
        if positions == self.own:
            return f"context {positions:,} (the model's own)"
        if positions == self.positions:
            return f"context {positions:,}, of the model's own {self.own:,}: {self.why}"
        return f"context {positions:,}, of the model's own {self.own:,}: as much as memory allows; see `context`"


def served_context(config: Mapping[str, Any], asked: int | None) -> ServedContext:
    """Positions of a session: what was asked for, else the model's own, as far as its numbers are right.

    Raises:
        UsageError: More than the model takes, or less than two.
    """
    own = own_positions(config)
    if asked is not None:
        return ServedContext(positions=_checked(asked, own), own=own, may_be_less=False)
    right = right_until(config, least=DEFAULT_CONTEXT)
    positions = own or DEFAULT_CONTEXT
    if right is not None and right < positions:
        why = "in longer texts mlx-lm computes other numbers than the model's"
        return ServedContext(positions=right, own=own, may_be_less=True, why=why)
    return ServedContext(positions=positions, own=own, may_be_less=True)


def _checked(asked: int, own: int | None) -> int:
    if asked < 2 or (own is not None and asked > own):
        raise UsageError(
            f"`context` {asked} is not possible.", why=f"The model takes 2 to {own or 'any number of'} positions."
        )
    return asked
