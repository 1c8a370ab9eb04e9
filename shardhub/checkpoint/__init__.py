"""Checkpoints read by their headers: tensors, configuration, costs. No framework is loaded."""
