"""The demonstration: a small real model, from the wheel it comes in to text out of a chain of nodes."""

from shardhub.upstream.imports import watch

watch()
