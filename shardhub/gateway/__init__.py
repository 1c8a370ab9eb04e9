"""The gateway: the HTTP APIs of OpenAI, Anthropic and Ollama over a chain, and a web page."""

from shardhub.upstream.imports import watch

watch()
