"""Token usage of answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shardhub.gateway.answers import Answer


def usage(answers: Iterable[Answer], num_prompt: int) -> dict[str, Any]:
    """Build OpenAI's usage object.

    Args:
        num_prompt: Number of ids of all prompts, each prompt counted once.
    """
    ended = list(answers)
    num_drawn = sum(answer.num_tokens for answer in ended)
    # Choices share their prompt, so its reused tokens count once.
    prompts = {id(answer.ask.prompt): answer.stream.num_reused for answer in ended}
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_drawn,
        "total_tokens": num_prompt + num_drawn,
        "prompt_tokens_details": {"cached_tokens": sum(prompts.values())},
        "completion_tokens_details": {"reasoning_tokens": sum(answer.num_reasoning for answer in ended)},
    }
