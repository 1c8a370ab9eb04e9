"""Prompts in, text out: tokenizer, chat template and stop strings. Used by the head only; no node has a tokenizer."""
