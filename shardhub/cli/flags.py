"""Options as dataclasses: declared once, flattened into the flags of every command that takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_type_hints

import typer

from shardhub.cli.run import run

T = TypeVar("T")
_PANEL = "_panel"


@dataclass_transform(kw_only_default=True, frozen_default=True)
def flags(panel: str) -> Callable[[type[T]], type[T]]:
    """Decorate a class as a frozen dataclass of options, whose fields are annotated like typer's parameters.

    Args:
        panel: Heading of the options in the help.
    """

    def decorate(kind: type[T]) -> type[T]:
        # All these classes are made whenever any command runs: methods to compare and print them would waste time.
        made: type[T] = dataclass(frozen=True, kw_only=True, repr=False, eq=False)(kind)
        setattr(made, _PANEL, panel)
        return made

    return decorate


@flags("Output")
class Debugging:
    """Options of a command that talks with a person."""

    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and logs.")] = False


@flags("Output")
class Output(Debugging):
    """Options of every command that reports."""

    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False


def flattened(body: Callable[..., int | None]) -> Callable[..., None]:
    """Make a typer command: parameters that are dataclasses made by `flags` become their fields' flags.

    The body runs as described in `run`; it takes an `Output` or `Debugging` under any name.

    Args:
        body: Returns an exit code, or None for 0.
    """
    hints = get_type_hints(body, include_extras=True)
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(body).parameters.items():
        if is_dataclass(hint := hints[name]) and isinstance(hint, type):
            groups[name] = hint
            parameters += _parameters(hint)
        else:
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))

    def command(**given: Any) -> None:
        options = {
            name: kind(**{one.name: given.pop(one.name) for one in fields(kind)}) for name, kind in groups.items()
        }
        output = next(value for value in options.values() if isinstance(value, Debugging))
        run(
            lambda: body(**given, **options),
            debug=output.debug,
            as_json=isinstance(output, Output) and output.as_json,
        )

    command.__name__ = body.__name__
    command.__doc__ = body.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


@cache
def _parameters(kind: type[Any]) -> tuple[inspect.Parameter, ...]:
    """Convert the fields of a dataclass to keyword parameters under its panel."""
    hints = get_type_hints(kind, include_extras=True)
    panel: str = getattr(kind, _PANEL)
    return tuple(_parameter(one, hints[one.name], panel) for one in fields(kind))


def _parameter(one: Field[Any], hint: Any, panel: str) -> inspect.Parameter:
    base, info = get_args(hint)
    info = copy(info)
    info.rich_help_panel = panel
    default = inspect.Parameter.empty if one.default is MISSING else one.default
    return inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[base, info]
    )
