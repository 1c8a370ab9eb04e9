"""`shardhub chat`: a conversation on the terminal."""

from __future__ import annotations

import contextlib
import sys

from shardhub.cli.generate import summary, system_messages
from shardhub.cli.run import print_error
from shardhub.cli.terminal import Terminal, end_answer, note, write_answer
from shardhub.errors import PromptError
from shardhub.usecases.answer import Sampling
from shardhub.usecases.open_head import open_head
from shardhub.usecases.start_head import HeadSettings


def chat(settings: HeadSettings, sampling: Sampling, *, system: str | None) -> int:
    """Chat until the end of input; Ctrl-C stops an answer without changing the conversation."""
    sampling = sampling.with_seed()
    sampling.parameters()  # values out of range are refused before anything is started
    opening = system_messages(system)
    messages = list(opening)
    with contextlib.suppress(ImportError):  # line editing and history, where Python has it
        import readline  # noqa: F401
    with open_head(settings, Terminal()) as head:
        note("Ctrl-C stops an answer, /new starts over, Ctrl-D ends the chat.")
        while (line := _read_line()) is not None:
            if not line.strip():
                continue
            if line.strip() == "/new":
                messages = list(opening)
                continue
            messages.append({"role": "user", "content": line})
            stream = head.stream(messages, sampling)
            try:
                for piece in stream:
                    write_answer(piece.text)
                end_answer()
                note(summary(stream.answer.usage))
            except KeyboardInterrupt:
                stream.close()
                end_answer()
                note("stopped")
            except PromptError as error:
                print_error(error)
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": stream.answer.text})
    return 0


def _read_line() -> str | None:
    """The next line of input; None at its end. Ctrl-C at the prompt discards the line."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                print()
            return None
        except KeyboardInterrupt:
            print()
            note("Ctrl-D ends the chat.")
