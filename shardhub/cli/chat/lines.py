"""Questions typed at a terminal that cannot be controlled: a line at a time."""

from __future__ import annotations

import sys

from shardhub.cli.chat.typed import is_open

_PROMPT, _CONTINUED = "> ", ". "


class Lines:
    """Reads questions from a terminal without editing them: a line, or several between triple quotes."""

    def read(self) -> str:
        """Read a question.

        Raises:
            EOFError: Ctrl-D was pressed.
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        text = _line_after(_PROMPT)
        while is_open(text):
            text += "\n" + _line_after(_CONTINUED)
        return text


def _line_after(prompt: str) -> str:
    """Read a line after a prompt, which is not written to stdout where that is a file or a pipe."""
    try:
        if sys.stdout.isatty():
            return input(prompt)
        print(prompt, end="", file=sys.stderr, flush=True)
        return input()
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        raise
