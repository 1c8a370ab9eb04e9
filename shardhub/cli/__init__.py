"""The command line: one module per verb, each of which parses, calls and prints."""

import os

from shardhub.cli.app import main
from shardhub.upstream.imports import hide_torch, watch

__all__ = ["main"]

# Read when gRPC is imported. Its core writes a line to the terminal for each stranger that calls without TLS. A caller
# gets an error anyway, and what matters here is logged by us.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

watch()
hide_torch()
