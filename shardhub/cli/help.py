"""Help in panels, in the order of use, with no line truncated; plain text, so that it is quick and works in a pipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_OPTIONS = "Options"
_COMMANDS = "Commands"


class Command(TyperCommand):
    """A command whose options are listed under the headings they were declared with."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage: an argument as it is named below, in brackets if it can be left out."""
        arguments = [parameter for parameter in self.get_params(ctx) if parameter.param_type_name == "argument"]
        names = [(parameter, _metavar(parameter, ctx)) for parameter in arguments]
        return ["[OPTIONS]", *(name if parameter.required else f"[{name}]" for parameter, name in names)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options by heading, in the order of each heading's first option."""
        _write_options(self.get_params(ctx), ctx, formatter)


class Group(TyperGroup):
    """A group whose commands are listed under headings, each with a complete sentence."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, then the commands."""
        _write_options(self.get_params(ctx), ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands by heading."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is None or command.hidden:
                continue
            summary = (command.help or "").strip().partition("\n\n")[0].replace("\n", " ")
            panels.setdefault(_panel_of(command, _COMMANDS), []).append((name, summary))
        _write(panels, formatter)


def make_group(name: str, text: str, **settings: Any) -> typer.Typer:
    """Make an empty group of commands.

    Args:
        text: What it is for, in a sentence.
        settings: Further settings of `typer.Typer`.
    """
    usual = {"no_args_is_help": True, "rich_markup_mode": None, "pretty_exceptions_enable": False}
    return typer.Typer(name=name, help=text, cls=Group, **(usual | settings))


def _write_options(parameters: Iterable[Any], ctx: Any, formatter: Any) -> None:
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in parameters:
        is_argument = parameter.param_type_name == "argument"
        if not is_argument and not parameter.is_flag:
            parameter.metavar = _metavar(parameter, ctx)
        if (row := parameter.get_help_record(ctx)) is not None:
            if is_argument:
                row = (_metavar(parameter, ctx), row[1])
            default = "Arguments" if is_argument else _OPTIONS
            # The options that name a pipeline come first, wherever they are declared.
            panel = default if default == "Arguments" else _panel_of(parameter, default)
            panels.setdefault(panel, []).append(row)
    _write(panels, formatter)


def _write(panels: dict[str, list[tuple[str, str]]], formatter: Any) -> None:
    width = max((len(name) for rows in panels.values() for name, _ in rows), default=0)
    for panel, rows in panels.items():
        with formatter.section(panel):
            # The columns of all panels are aligned if the names leave room for it.
            formatter.write_dl([(name.ljust(min(width, _COLUMN)), text) for name, text in rows])


# Names of values, by option and else by the name of the type; a choice is written as its words.
_METAVARS = {
    "--dir": "DIR",
    "--host": "HOST",
    "--interval": "SECONDS",
    "--manifest": "PIPELINE",
    "--min-age": "HOURS",
    "--minutes": "MINUTES",
    "--model-name": "NAME",
    "--name": "NAME",
    "--port": "PORT",
    "--recover-wait": "SECONDS",
    "--shutdown-timeout": "SECONDS",
    "--user": "USER",
    "int": "N",
    "int range": "N",
    "float": "N",
    "float range": "N",
    "str": "TEXT",
    "list[str]": "TEXT",
    "path": "FILE",
}


def _metavar(parameter: Any, ctx: Any) -> str:
    if parameter.metavar is not None:
        return str(parameter.metavar)
    kind = str(parameter.display_type(ctx)).strip("<>")
    return _METAVARS.get(parameter.opts[-1]) or _METAVARS.get(kind, kind)


# Names of this length or more get a line of their own.
_COLUMN = 28


def _panel_of(command: Any, default: str) -> str:
    panel = getattr(command, "rich_help_panel", None)
    return panel if isinstance(panel, str) else default
