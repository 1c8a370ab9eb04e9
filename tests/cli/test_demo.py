"""The README's first command, as a new user runs it."""

from __future__ import annotations

import json

from tests import nodes


def test_demo_says_what_the_unsplit_model_says(smollm2) -> None:
    """A real model through a local Hub, two nodes by repo id, and the very tokens of mlx_lm; nothing is left behind."""
    result = nodes.shardhub("demo", "--json")
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["equal"] is True
    assert said["tokens"] == said["unsplit_tokens"]
    assert "Paris" in said["text"]
    assert (smollm2 / "config.json").is_file()
