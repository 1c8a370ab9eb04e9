"""Parses tool calls in the text of an answer, in all formats that models are trained on."""
