"""Help: panels in the order of use, whole sentences, every option described."""

from __future__ import annotations

import re
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


def help_of(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--help"])
    assert done.exit_code == 0, done.output
    return done.output


def test_commands_stand_in_panels_in_the_order_of_use() -> None:
    """The headings and the commands below each are those of `COMMANDS`, in that order."""
    text = help_of()
    headings = re.findall(r"^([A-Z][^:\n]*):$", text, flags=re.M)
    assert headings == ["Options", *COMMANDS, "A Hub and a cluster of your own"]
    assert re.findall(r"^  ([a-z][a-z-]+) {2,}", text, flags=re.M) == [*NAMES, "hub", "certs"]


@pytest.mark.parametrize("arguments", [(), ("hub",), ("certs",), *CALLS], ids=" ".join)
def test_no_line_is_cut_off(arguments: tuple[str, ...]) -> None:
    """Nothing is shortened to dots: a description takes as many lines as it needs."""
    described = help_of(*arguments).partition("\n\n")[2]  # what stands before it is the usage
    dots = re.findall(r"\S*\.\.\.", described)
    assert set(dots) <= {"1,2,4,...", "N,N,...", "L,L,...", "SHARD...", "REPO..."}


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_every_option_is_described_under_a_heading(call: tuple[str, ...]) -> None:
    """Each option has a help text and, but for --help, a panel of its own command's."""
    command: Any = typer.main.get_command(app)
    for name in call:
        command = command.commands[name]
    for parameter in command.params:
        assert parameter.help, parameter.name
        if parameter.param_type_name == "option":
            assert parameter.rich_help_panel, parameter.name


def test_options_of_a_chat_have_its_own_defaults() -> None:
    """What `chat` shares with `generate` is declared once; where its values differ, help shows them."""
    assert "default: 1024" in help_of("chat")
    assert "default: 256" in help_of("generate")
    assert "--json" not in help_of("chat")
