"""Drafts: guesses at the next tokens, which a chain verifies together in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Guesses tokens that may follow these ids: any number of them, or none.
Drafter = Callable[[Sequence[int]], Sequence[int]]


def prompt_lookup(*, num_drafts: int, longest: int = 4, shortest: int = 2) -> Drafter:
    """Make a drafter that copies what followed the same ids earlier in the text.

    Args:
        num_drafts: Most tokens guessed at once.
        longest, shortest: Lengths of the suffix that is searched for, the longest first.

    Source: prompt lookup decoding, https://github.com/apoorvumang/prompt-lookup-decoding.
    """

    def draft(ids: Sequence[int]) -> Sequence[int]:
        known = list(ids)
        for length in range(min(longest, len(known) - 1), shortest - 1, -1):
            tail = known[-length:]
            for at in range(len(known) - length - 1, -1, -1):
                if known[at : at + length] == tail:
                    return known[at + length : at + length + num_drafts]
        return []

    return draft


def why_limited(rewind_limit: int, context: int) -> str:
    """Why a chain takes no drafts, or none after some position; empty if it takes them everywhere.

    Args:
        rewind_limit: Largest position from which a session can be rewound.
        context: Most positions of a session.
    """
    if not rewind_limit:
        return "Drafts are off: this architecture's caches cannot undo a wrong draft."
    if rewind_limit < context:
        return (
            f"Drafts stop at position {rewind_limit}: beyond it, a sliding window drops the positions needed to undo "
            "a wrong draft."
        )
    return ""
