"""The number of positions that a model takes, by its configuration."""

from __future__ import annotations

import pytest

from shardhub.checkpoint.positions import own_positions

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({}, None),
        ({"max_position_embeddings": 40960}, 40960),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 131072}}, 131072),
        ({"max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": YARN}, 131072),
        ({"max_position_embeddings": 131072, "rope_parameters": {**YARN, "rope_type": "yarn"}}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
          "original_max_position_embeddings": 8192}}, 131072),
        ({"max_position_embeddings": 16384, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),
        ({"max_position_embeddings": 2048, "rope_scaling": "odd"}, 2048),
        ({"max_position_embeddings": None, "seq_length": 8192}, 8192),
    ],
)  # fmt: skip
def test_scaled_positions_count(config, positions) -> None:
    """The limit is what the configuration states, or what its scaling makes of the original training length."""
    assert own_positions(config) == positions
