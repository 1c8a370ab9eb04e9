"""The commands of a chat: lines that begin with a slash."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shardhub.cli.chat.typed import unquoted
from shardhub.cli.terminal import note
from shardhub.errors import UsageError
from shardhub.usecases.answer import Sampling
from shardhub.usecases.conversation import Conversation
from shardhub.usecases.open_head import Head
from shardhub.usecases.saved_chat import load_chat, save_chat

# Options of `shardhub chat` by the field of `Sampling` that each sets, where its name is another.
_OPTION_OF = {"temperature": "temp"}
_SETTINGS = {
    _OPTION_OF.get(field.name, field.name).replace("_", "-"): field.name for field in dataclasses.fields(Sampling)
}
_NONE = "none"


class Left(Exception):
    """The person ended the chat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCommand:
    """A command of a chat.

    Attributes:
        names: What calls it; the first is listed.
        argument: Name of what follows it; empty if nothing does.
        text: What it does.
        run: Takes what follows the name.
    """

    names: tuple[str, ...]
    argument: str = ""
    text: str
    run: Callable[[str], None]


class ChatCommands:
    """The commands of one chat.

    Args:
        head: Runs the conversation.
        conversation: What the commands change.
        retry: Answers the last question again.
    """

    def __init__(self, head: Head, conversation: Conversation, retry: Callable[[], None]) -> None:
        self._head = head
        self._conversation = conversation
        self._retry = retry
        self._commands = (
            ChatCommand(names=("/help", "/?", "/"), text="list the commands", run=self._help),
            ChatCommand(names=("/clear", "/new"), text="begin a new conversation", run=self._clear),
            ChatCommand(names=("/retry", "/regenerate"), text="answer the last question again", run=self._again),
            ChatCommand(
                names=("/system",),
                argument="TEXT",
                text='set the system prompt; "" removes it, and without a text it is shown',
                run=self._system,
            ),
            ChatCommand(
                names=("/set",),
                argument="NAME VALUE",
                text="change how tokens are chosen; without a name the settings are shown",
                run=self._set,
            ),
            ChatCommand(
                names=("/status", "/show"), text="show the pipeline, its machines and the settings", run=self._status
            ),
            ChatCommand(names=("/save",), argument="FILE", text="write the conversation to a file", run=self._save),
            ChatCommand(names=("/load",), argument="FILE", text="continue the conversation of a file", run=self._load),
            ChatCommand(names=("/bye", "/exit", "/quit"), text="end the chat", run=self._leave),
        )
        self._by_name = {name: command for command in self._commands for name in command.names}

    @property
    def names(self) -> frozenset[str]:
        """Everything that calls a command."""
        return frozenset(self._by_name)

    def run(self, text: str) -> None:
        """Run a command.

        Raises:
            UsageError: There is no such command, or what follows it cannot be used.
            Left: It ends the chat.
        """
        name, *rest = text.strip().split(maxsplit=1)
        command = self._by_name.get(name)
        if command is None:
            listed = ", ".join(each.names[0] for each in self._commands)
            raise UsageError(
                f"There is no command {name}.",
                why=f"The commands are {listed}.",
                hint=f"To send the line to the model as it is, begin it with two slashes: /{name}",
            )
        command.run(rest[0].strip() if rest else "")

    def _help(self, argument: str) -> None:
        for command in self._commands:
            call = f"{command.names[0]} {command.argument}"
            others = ", ".join(name for name in command.names[1:] if len(name) > 1)
            note(f"  {call:<16}  {command.text}" + (f" (also {others})" if others else ""))
        note('Enter sends; Alt-Enter begins another line, and so does Enter between """ and """.')
        note("Pasted lines are one question. To send a line that begins with a command's name, begin it with //.")

    def _clear(self, argument: str) -> None:
        self._conversation.clear()
        note("This is a new conversation.")

    def _again(self, argument: str) -> None:
        if self._conversation.sampling.temperature == 0:
            note("The temperature is 0, which gives the same answer again; /set temp 0.7 allows others.")
        self._retry()

    def _system(self, argument: str) -> None:
        if argument:
            self._conversation.system = "" if argument == '""' else unquoted(argument)
            note("The system prompt applies from the next question on.")
        note(f"System prompt: {self._conversation.system or 'none'}")

    def _set(self, argument: str) -> None:
        if argument:
            self._conversation.sampling = changed(self._conversation.sampling, *argument.split(maxsplit=1))
        for name, field in _SETTINGS.items():
            note(f"  {name:<18}  {_written(getattr(self._conversation.sampling, field))}")

    def _status(self, argument: str) -> None:
        status = self._head.status()
        note(f"{status.pipeline}, with {status.context} positions for a conversation")
        for stages in status.stages:
            start, stop = stages.layers
            note(f"  layers {start} to {stop - 1} at {stages.at}")
        if status.inexact:
            note(f"  inexact: {status.inexact}")
        self._system("")
        self._set("")

    def _save(self, argument: str) -> None:
        path = save_chat(_file(argument, "/save"), self._conversation)
        note(f"The conversation is in {path}.")

    def _load(self, argument: str) -> None:
        load_chat(_file(argument, "/load"), self._conversation)
        num = sum(message["role"] == "user" for message in self._conversation.messages)
        note(f"The conversation has {num} question{'s' if num != 1 else ''}.")

    def _leave(self, argument: str) -> None:
        raise Left


def changed(sampling: Sampling, name: str, value: str = "") -> Sampling:
    """Sampling with one setting changed.

    Args:
        name: The setting, named as the option of the command line, with or without its dashes.
        value: As it would be given on the command line; `none` for no seed and no stop text.

    Raises:
        UsageError: There is no such setting, or the value cannot be used.
    """
    option = name.lstrip("-").replace("_", "-")
    field = _SETTINGS.get(_OPTION_OF.get(option, option))
    if field is None:
        raise UsageError(f"There is no setting {name}.", hint=f"The settings are {', '.join(_SETTINGS)}.")
    if not value:
        raise UsageError(f"The value of {option} is missing.", hint="Give it after the name, such as /set temp 0.7")
    return dataclasses.replace(sampling, **{field: _parsed(field, option, value)})


def _parsed(field: str, option: str, value: str) -> Any:
    default = getattr(Sampling(), field)
    if value == _NONE and field in ("seed", "stop"):
        return default
    if field == "stop":
        return (unquoted(value),)
    try:
        return float(value) if isinstance(default, float) else int(value)
    except ValueError:
        kind = "number" if isinstance(default, float) else "whole number"
        raise UsageError(f"{option} is {value!r}.", why=f"It must be a {kind}.") from None


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(repr, value)) or _NONE
    return _NONE if value is None else str(value)


def _file(argument: str, command: str) -> str:
    if not argument:
        raise UsageError("No file was named.", hint=f"Name one, such as {command} chat.json")
    return argument
