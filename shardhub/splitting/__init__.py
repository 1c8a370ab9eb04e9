"""Splitting: a checkpoint's bytes copied into shard folders, layer by layer, and the documents beside them."""
