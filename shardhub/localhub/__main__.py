"""`python -m shardhub.localhub FOLDER`: a Hub on a free loopback port, for a program that starts it as a child.

It prints its URL on one line and serves until SIGTERM. People use `shardhub hub serve`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from shardhub.errors import ShardhubError, outcome
from shardhub.localhub.server import RunningHub, ServerSettings, serve


def main() -> int:
    """Serve the folder given on the command line."""
    if len(sys.argv) not in {2, 3}:
        print("usage: python -m shardhub.localhub FOLDER [PORT]", file=sys.stderr)
        return 2

    def ready(running: RunningHub) -> None:
        print(running.endpoint, flush=True)

    try:
        port = int(sys.argv[2]) if len(sys.argv) == 3 else 0
        return serve(Path(sys.argv[1]), ServerSettings(port=port), on_ready=ready)
    except ShardhubError as error:
        print(error, file=sys.stderr)
        return outcome(error).exit


if __name__ == "__main__":
    sys.exit(main())
