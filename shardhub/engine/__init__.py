"""The engine runs a stage, in a node or in the caller: one compute thread, its sessions, its KV budget."""

from shardhub.upstream.imports import watch

watch()
