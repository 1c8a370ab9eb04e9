"""Questions typed at a terminal: editing, history, pasting, and notes that come meanwhile."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import History as Remembered
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.shortcuts import CompleteStyle

from shardhub.cli.chat.typed import is_open
from shardhub.cli.terminal import note, prompting
from shardhub.usecases.history import History

_PROMPT = "> "
_CONTINUED = ". "


class Editor:
    """Reads questions from a terminal.

    Enter ends a question, Alt-Enter begins another line of it, and pasted lines are part of it.

    Args:
        history: Where questions are remembered beyond this chat, if anywhere.
        commands: Completed by Tab.
    """

    def __init__(self, history: History | None, commands: Sequence[str]) -> None:
        output = Vt100_Output.from_pty(sys.stdout, term=os.environ.get("TERM"))
        # The cursor's position is not needed; terminals that do not tell it would cause a warning and a pause.
        output.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(
            _PROMPT,
            multiline=True,
            prompt_continuation=_CONTINUED,
            history=_Questions(history),
            key_bindings=_keys(),
            completer=_Commands(commands),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            enable_suspend=True,
            input=create_input(sys.stdin),
            output=output,
        )

    def read(self) -> str:
        """Read a question; notes that come meanwhile are shown above it.

        Raises:
            EOFError: Ctrl-D was pressed.
            KeyboardInterrupt: Ctrl-C was pressed; its argument is true if there was text to discard.
        """
        with prompting(patch_stdout(raw=True) if sys.stderr.isatty() else nullcontext()):
            try:
                return self._session.prompt()
            except KeyboardInterrupt as error:
                raise KeyboardInterrupt(bool(self._session.default_buffer.text)) from error


class _Questions(Remembered):
    """The history that the arrow keys go through."""

    def __init__(self, kept: History | None) -> None:
        super().__init__()
        self._kept = kept

    def load_history_strings(self) -> Iterable[str]:
        """The latest first."""
        try:
            return reversed(self._kept.read() if self._kept is not None else [])
        except OSError as error:
            self._give_up(error)
            return []

    def store_string(self, string: str) -> None:
        """Keep a question beyond this chat, unless it begins with a blank."""
        if self._kept is None or string.startswith(" "):
            return
        try:
            self._kept.append(string)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        assert self._kept is not None
        note(f"The history cannot be kept in {self._kept.file}: {error.strerror or error}.")
        self._kept = None


class _Commands(Completer):
    """Completes the first word of a line that begins with a slash."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """The commands that begin like the text before the cursor."""
        text = document.text_before_cursor
        if text.startswith("/"):
            for name in self._names:
                if name.startswith(text):
                    yield Completion(name, start_position=-len(text))


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
