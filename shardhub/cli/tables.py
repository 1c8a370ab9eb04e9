"""What rich renders, as lines of text: with colours on a terminal only, and as wide as needed into a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

# A table into a pipe is as wide as it needs to be.
_PIPE_WIDTH = 400


def text_of(content: RenderableType) -> str:
    """Render something for stdout."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False) if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    with console.capture() as capture:
        console.print(content)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())
