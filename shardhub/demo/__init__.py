"""The demonstration model: fetching a small real model from a wheel and converting it."""

from shardhub.upstream.imports import watch

watch()
