"""The loop of a chat: read a question or a command, show the answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Protocol

from shardhub.cli.chat.answers import AnswerView, PlainAnswer, WrappedAnswer, wrapped
from shardhub.cli.chat.commands import ChatCommands, Left
from shardhub.cli.chat.lines import Lines
from shardhub.cli.chat.typed import is_command, question_of
from shardhub.cli.run import print_error
from shardhub.cli.terminal import note, shaped_notes
from shardhub.errors import ContextExceeded, PromptError, ShardhubError
from shardhub.usecases.conversation import Conversation, Turn
from shardhub.usecases.history import History
from shardhub.usecases.open_head import Head

# Kinds of terminals that understand no control sequences.
_PLAIN_TERMINALS = ("", "dumb", "unknown")


class _Questions(Protocol):
    """Reads what a person types; raises EOFError and KeyboardInterrupt for Ctrl-D and Ctrl-C."""

    def read(self) -> str: ...


def answer_pipe(conversation: Conversation) -> None:
    """Answer the lines of a pipe, each of which is a question, or /new.

    Raises:
        ChainError: A stage failed and could not be recovered.
    """
    note("Ctrl-C stops an answer, /new starts over, Ctrl-D ends the chat.")
    while True:
        try:
            line = input()
        except EOFError:
            return
        except KeyboardInterrupt:
            print()
            note("Ctrl-D ends the chat.")
            continue
        if line.strip() == "/new":
            conversation.clear()
        elif line.strip():
            try:
                _show(conversation.ask(line), PlainAnswer())
            except PromptError as error:
                print_error(error)


class Talk:
    """A chat with a person at a terminal. Use `run`.

    Args:
        head: Runs the conversation.
        conversation: The conversation.
        keeps_history: Whether questions are remembered for other chats.
    """

    def __init__(self, head: Head, conversation: Conversation, *, keeps_history: bool) -> None:
        self._conversation = conversation
        self._context = head.status().context
        self._keeps_history = keeps_history
        self._commands = ChatCommands(head, conversation, lambda: self._answer(conversation.retry()))
        self._view: Callable[[], AnswerView] = PlainAnswer
        self._answering: Callable[[], AbstractContextManager[None]] = nullcontext

    def run(self) -> None:
        """Converse until the person ends it."""
        note("Ctrl-C stops an answer, /help lists the commands, Ctrl-D ends the chat.")
        with ExitStack() as stack:
            questions = stack.enter_context(self._questions())
            was_interrupted = False
            while True:
                try:
                    text = questions.read()
                except EOFError:
                    return
                except KeyboardInterrupt as interrupt:
                    has_discarded_text = any(interrupt.args)
                    if was_interrupted and not has_discarded_text:
                        return
                    was_interrupted = not has_discarded_text
                    if was_interrupted:
                        note("Ctrl-C again, Ctrl-D or /bye ends the chat.")
                    continue
                was_interrupted = False
                try:
                    self._take(text)
                except Left:
                    return
                except ShardhubError as error:
                    print_error(error)
                    if isinstance(error, ContextExceeded):
                        note("/clear begins a new conversation.")

    def _take(self, text: str) -> None:
        if is_command(text, self._commands.names):
            self._commands.run(text)
        elif question := question_of(text).strip():
            self._answer(self._conversation.ask(question))

    def _answer(self, turn: Turn) -> None:
        _show(turn, self._view(), self._answering())
        answer = turn.answer
        if answer.finish == "length":
            most = self._conversation.sampling.max_tokens
            if answer.usage.num_generated < most:
                note(f"The conversation fills its {self._context} positions. /clear begins a new one.")
            else:
                note(f"The answer was cut after {most} tokens. /set max-tokens {2 * most} allows longer ones.")

    @contextmanager
    def _questions(self) -> Iterator[_Questions]:
        """Prepare the terminal."""
        if not sys.stdout.isatty() or os.environ.get("TERM", "") in _PLAIN_TERMINALS:
            yield Lines()
            return
        from shardhub.cli.chat.editor import Editor  # takes a fifth of a second
        from shardhub.cli.chat.keyboard import Keyboard

        history = History() if self._keeps_history else None
        with Keyboard() as keyboard, shaped_notes(wrapped):
            self._view, self._answering = WrappedAnswer, keyboard.answering
            yield Editor(history, sorted(self._commands.names))


def _show(turn: Turn, view: AnswerView, answering: AbstractContextManager[None] | None = None) -> None:
    """Show an answer as it comes; Ctrl-C stops it.

    Args:
        answering: Entered while the answer comes.

    Raises:
        ShardhubError: It failed.
    """
    is_stopped = is_shown = False
    failure: ShardhubError | None = None
    with answering or nullcontext():
        try:
            for segment in turn:
                is_shown = True
                view.write(segment)
        except KeyboardInterrupt:
            is_stopped = is_shown = True
        except ShardhubError as error:
            failure = error
        for segment in turn.end():
            is_shown = True
            view.write(segment)
        if is_shown or failure is None:
            view.end()
    if failure is not None:
        raise failure
    if not is_stopped:
        note(turn.answer.usage.summary)
    elif turn.is_kept:
        note("stopped")
    else:
        note("stopped before the first word; the question is not kept")
