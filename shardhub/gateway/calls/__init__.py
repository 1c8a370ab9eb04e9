"""Calls of tools in the text of an answer: every way of writing them that models are trained on."""
