"""Limits that a head keeps to and a node holds it to."""

from __future__ import annotations

# Room in a message for everything that is not a tensor.
MESSAGE_OVERHEAD_BYTES = 64 << 10
# Positions that padding may add where sessions of different lengths go together in one step, as a share of their own.
# The head counts the positions it sends, the node those it promised.
MAX_PADDING = 0.25
# Positions of a prompt whose logits are computed at once where it is asked how likely its ids were: of a long chunk
# and a large vocabulary they would take gigabytes.
MAX_SCORED = 128
