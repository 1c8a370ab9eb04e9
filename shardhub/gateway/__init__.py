"""The gateway: a chain behind an HTTP API that OpenAI's clients speak, and a page."""

from shardhub.upstream.imports import watch

watch()
