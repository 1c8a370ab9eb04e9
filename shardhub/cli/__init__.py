"""The command line: verbs in the order the data flows, each one parse, call, print."""

import os

from shardhub.cli.app import main
from shardhub.upstream.imports import hide_torch, watch

__all__ = ["main"]

# Read when gRPC is imported. Its core writes a line to the terminal for each stranger that calls without TLS; a caller
# is told what is wrong, and what matters here has a line of our own.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

watch()
hide_torch()
