"""Limits that a head keeps and a node enforces."""

from __future__ import annotations

# Room in a message for everything that is not a tensor.
MESSAGE_OVERHEAD_BYTES = 64 << 10
# Positions that padding may add when sessions of different lengths share a step, as a share of their own positions.
# The head counts the positions it sends, the node those it reserved.
MAX_PADDING = 0.25
# Positions whose logits are computed at once when the likelihood of a prompt's ids is asked for: a long chunk with a
# large vocabulary would take gigabytes.
MAX_SCORED = 128
# Tokens that one pass may guess and verify.
MAX_DRAFT = 32
# Tokens of each answer in a parity record.
MAX_REFERENCE_TOKENS = 4096
# Files that a node is asked for in one message.
MAX_FILES_ASKED = 512
# Addresses of other nodes that a node is told of, and keeps.
MAX_NODES_KEPT = 64
