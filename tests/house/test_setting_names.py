"""Messages below the command line name settings; the command line replaces them with options."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

import shardhub
from shardhub.cli.app import app
from shardhub.cli.run import error_record, print_error
from shardhub.cli.setting_names import FLAGS, with_flags
from shardhub.cli.terminal import note
from shardhub.errors import UsageError

PACKAGE = Path(shardhub.__file__).parent
# The command line itself, and options of pip's.
LEFT_OUT = {"cli", "demo"}
# Inside such a command an option is right for everybody who reads it.
_COMMAND = re.compile(r"\b(shardhub [a-z]|pip |mlx_lm\.[a-z]|generate )[^.;`]*$")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")

# Words in backticks that are not settings of the library.
_NOT_OF_THE_LIBRARY = {
    "blas": "only commands choose the BLAS: it is bound when MLX is imported",
    "caffeinate": "a program of macOS",
    "dir": "of `shardhub hub` and `shardhub certs`, which the library does not offer",
    "end_cluster": "of `shardhub cluster leave`, which the library does not offer",
    "false": "a JSON schema",
    "life": "of `shardhub cluster invite`, which the library does not offer",
    "on": "of `shardhub up`, which the library does not offer",
    "public_url": "of `shardhub hub serve`, which the library does not offer",
    "open_head": "a function of the library",
    "serve_only": "of `shardhub join`, which the library does not offer",
    "sessions": "of `shardhub up`, which the library does not offer",
    "with": "a statement of Python",
}


def settings_of_the_library() -> set[str]:
    """Fields of the public settings, and parameters of the public functions and methods."""
    names: set[str] = set()
    for public in (getattr(shardhub, name) for name in shardhub.__all__):
        if inspect.isfunction(public):
            names |= set(inspect.signature(public).parameters)
        elif inspect.isclass(public):
            methods = (value for key, value in vars(public).items() if not key.startswith("_"))
            for method in filter(inspect.isfunction, methods):
                names |= set(inspect.signature(method).parameters)
            others = (shardhub.Cut, shardhub.Quantisation, shardhub.Sampling)
            if public.__name__.endswith("Settings") or public in others:
                names |= {field.name for field in dataclasses.fields(public)}
    return names


def options() -> set[str]:
    """Every long option of every command."""

    def of(command: click.Command) -> Iterator[str]:
        for parameter in command.params:
            yield from (name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--"))
        for inner in getattr(command, "commands", {}).values():
            yield from of(inner)

    return set(of(typer.main.get_command(app)))


def messages(tree: ast.Module) -> Iterator[str]:
    """Every string of a module that is not a docstring, with X for its placeholders."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    parts = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(value.value) if isinstance(value, ast.Constant) else "X" for value in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | parts:
            yield node.value


def below() -> Iterator[tuple[Path, str]]:
    """The messages of all modules below the command line."""
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] not in LEFT_OUT and not path.stem.endswith(("_pb2", "_pb2_grpc")):
            yield from ((path, text) for text in messages(ast.parse(path.read_text())))


def test_no_message_below_the_command_line_names_an_option() -> None:
    """No message below the command line names an option, except within a command that can be run as it is."""
    known = options()
    for path, text in below():
        for match in _OPTION.finditer(text):
            assert match[0] not in known or _COMMAND.search(text[: match.start()]), f"{path}: {text}"


def test_every_setting_that_is_named_has_its_option() -> None:
    """The table holds existing options, and an entry for each setting that a message names in backticks."""
    known = options()
    assert set(FLAGS.values()) <= known
    for path, text in below():
        for name in re.findall(r"`([a-z_]+)`", text):
            assert f"--{name.replace('_', '-')}" not in known or name in FLAGS, f"{path}: {text}"


def test_every_setting_that_is_named_is_the_librarys() -> None:
    """A setting that a message names exists in the library under that name; the few other words have a reason."""
    named = {name: path for path, text in below() for name in re.findall(r"`([a-z_]+)`", text)}
    unknown = {name: path for name, path in named.items() if name not in settings_of_the_library()}
    assert unknown.keys() == _NOT_OF_THE_LIBRARY.keys(), unknown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Raise `context` on every node.", "Raise --context on every node."),
        ("Give it once with `nodes`, or `assume_yes`.", "Give it once with --node, or --yes."),
        ("Start it with `shardhub serve`, and `kv_bits` 4.", "Start it with `shardhub serve`, and --kv-bits 4."),
        ("`verify` and `nonsense` stay.", "`verify` and `nonsense` stay."),
    ],
)
def test_settings_are_shown_as_options(text: str, shown: str) -> None:
    """Settings are replaced by options; commands and other words in backticks are unchanged."""
    assert with_flags(text) == shown


def test_errors_are_shown_with_options(capsys: pytest.CaptureFixture[str]) -> None:
    """The command names options in all parts of an error, on stderr and as JSON; a program reads names of settings."""
    error = UsageError("`cuts` is wrong.", why="`stages` was given.", hint="Leave out `cuts`.")
    assert "`cuts`" in str(error)
    print_error(error)
    assert capsys.readouterr().err == "Error: --cuts is wrong.\nWhy: --stages was given.\nTry: Leave out --cuts.\n"
    assert error_record(error)["hint"] == "Leave out --cuts."
    note(f"going on: {error.hint}")
    assert capsys.readouterr().err == "going on: Leave out --cuts.\n"
