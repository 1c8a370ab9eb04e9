"""Tokenizer, chat template, detokenizer and stop strings. Only the head uses them: nodes have no tokenizer."""
