"""The command line: verbs in the order the data flows, each one parse, call, print."""

from shardhub.cli.app import main
from shardhub.upstream import watch

__all__ = ["main"]

watch()
