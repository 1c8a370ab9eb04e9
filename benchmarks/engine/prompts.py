"""What is asked of the models."""

from __future__ import annotations

from shardhub.chain.head import Head

_THINGS = (
    "a river", "a lighthouse", "a clockmaker", "a winter road", "an old library", "a ferry", "a market",
    "a mountain pass", "a bakery", "a railway station", "a garden", "a lost letter", "a bridge", "a night watch",
    "a harbour", "a violin",
)  # fmt: skip


def stories(head: Head, num: int) -> list[list[int]]:
    """Prompts of about the same length, each for another long answer."""
    things = [_THINGS[index % len(_THINGS)] for index in range(num)]
    return [
        head.tokenizer.render_chat([{"role": "user", "content": f"Tell a long story of {subject}."}]).ids
        for subject in things
    ]
