"""Help: panels in the order of use, whole sentences, a description for every option."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from shardhub.cli.app import COMMANDS, app
from shardhub.cli.commands.certs import CERTS_COMMANDS
from shardhub.cli.commands.hub import HUB_COMMANDS

NAMES = [name for commands in COMMANDS.values() for name in commands]
# Every command by the words that call it.
CALLS = [
    *((name,) for name in NAMES),
    *(("hub", body.__name__) for body in HUB_COMMANDS),
    *(("certs", body.__name__) for body in CERTS_COMMANDS),
]


# Built once: with all its options this takes a twentieth of a second.
COMMAND: Any = typer.main.get_command(app)


@cache
def help_of(*arguments: str) -> str:
    """What a command prints with --help."""
    done = CliRunner().invoke(app, [*arguments, "--help"])
    assert done.exit_code == 0, done.output
    return done.output


def command_of(call: tuple[str, ...]) -> Any:
    """The command that these words call."""
    command = COMMAND
    for name in call:
        command = command.commands[name]
    return command


GROUPS = {"A cluster": ("cluster", "resident")}


def test_commands_stand_in_panels_in_the_order_of_use() -> None:
    """The headings and the commands below each are those of `COMMANDS`, in that order, then groups of commands."""
    text = help_of()
    headings = re.findall(r"^([A-Z][^:\n]*):$", text, flags=re.M)
    assert headings == ["Options", *COMMANDS, "A Hub and a cluster of your own"]
    expected = [name for panel, commands in COMMANDS.items() for name in (*commands, *GROUPS.get(panel, ()))]
    assert re.findall(r"^  ([a-z][a-z-]+) {2,}", text, flags=re.M) == [*expected, "hub", "certs"]


@pytest.mark.parametrize("arguments", [(), ("hub",), ("certs",), *CALLS], ids=" ".join)
def test_no_line_is_cut_off(arguments: tuple[str, ...]) -> None:
    """No description is shortened with dots: it takes as many lines as it needs."""
    described = help_of(*arguments).partition("\n\n")[2]  # what stands before it is the usage
    dots = re.findall(r"\S*\.\.\.", described)
    assert set(dots) <= {"1,2,4,...", "N,N,...", "L,L,...", "SHARD...", "PIPELINE...", "REPO...", "WORD..."}


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_every_option_is_described_under_a_heading(call: tuple[str, ...]) -> None:
    """Each option has a help text and, but for --help, a panel of its own command's."""
    for parameter in command_of(call).params:
        assert parameter.help, parameter.name
        if parameter.param_type_name == "option":
            assert parameter.rich_help_panel, parameter.name


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_values_are_named_one_way(call: tuple[str, ...]) -> None:
    """Values are named in upper case, or by the words to choose from, without braces or type names."""
    text = help_of(*call)
    usage = " ".join(text.partition("\n\n")[0].split())
    assert re.fullmatch(r"Usage: [a-z -]+ \[OPTIONS\]( \[?[A-Z]+(\.\.\.)?\]?)*", usage), usage
    assert not re.search(r"[{}<]", re.sub(r"\dx?<=|<=x?", "", text.replace("<=x<=", ""))), text
    for parameter in command_of(call).params:
        if parameter.param_type_name == "option" and not parameter.is_flag:
            value = re.search(rf"{parameter.opts[-1]} (\S+)", text)
            assert value is not None
            assert re.fullmatch(r"[][A-Z:,.=|-]+|[a-z_]+(\|[a-z_]+)+", value[1]), value[0]
            if parameter.multiple:
                assert "repeatable" in parameter.help, parameter.name


def test_defaults_are_shown_where_they_exist() -> None:
    """Every option with a default shows it, also a default that depends on the machine or the model."""
    assert "by default 8192, or the model's own if less" in " ".join(help_of("split").split())
    assert "by default what this machine can spare" in " ".join(help_of("serve").split())


def test_options_of_a_chat_have_its_own_defaults() -> None:
    """Options that `chat` shares with `generate` are declared once; where defaults differ, help shows them."""
    assert "default: 1024" in help_of("chat")
    assert "default: 256" in help_of("generate")
    assert "--json" not in help_of("chat")
