"""The gateway: a chain behind an HTTP API that OpenAI's clients speak, and a page."""
