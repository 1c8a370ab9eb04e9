"""Detecting values that a forward reads on the host, and their use: a trace has no values to give.

Some forwards choose experts on the host, which only indexes a list. Anything else that depends on a value is a branch
of the code that no graph shows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from shardhub.errors import ShardhubError, UnsupportedModel
from shardhub.model.build import RUN_WHOLE
from shardhub.model.content import PACKAGE

# How MLX's messages say that something cannot be evaluated in a trace.
_EVALUATION = ("[eval]", "[async_eval]")
# Methods of an answer by which it decides something, or by which its origin is lost.
_USES = (
    "eq", "ne", "lt", "le", "gt", "ge", "bool", "hash", "add", "radd", "sub", "rsub", "mul", "rmul", "floordiv",
    "rfloordiv", "truediv", "rtruediv", "mod", "rmod", "divmod", "rdivmod", "pow", "rpow", "and", "rand", "or", "ror",
    "xor", "rxor", "lshift", "rlshift", "rshift", "rrshift", "neg", "pos", "abs", "invert", "int", "float", "round",
    "trunc", "floor", "ceil", "str", "format",
)  # fmt: skip


@dataclass(slots=True)
class Failures:
    """Reads of values that could not be answered, or whose answers decided something, each with its place."""

    uses: dict[str, None] = field(default_factory=dict)
    refused: list[ShardhubError] = field(default_factory=list)

    def check(self) -> None:
        """Refuse a forward that went on in spite of a failure.

        Raises:
            UnsupportedModel: The forward read values on the host.
            ShardhubError: The forward caught one of our errors.
        """
        if self.refused:
            raise self.refused[0]
        if self.uses:
            raise UnsupportedModel(
                f"The model's forward reads values on the host: {', '.join(list(self.uses)[:2])}.",
                why="Without weights, what it does with other values cannot be traced, so a split cannot be proven.",
                hint=RUN_WHOLE,
            )


class Answer(int):
    """The answer of a trace to a read of an integer element: usable as an index, and every other use is recorded."""

    failures: Failures

    def __new__(cls, failures: Failures) -> Answer:
        """A zero, which is a valid index everywhere."""
        answer = super().__new__(cls, 0)
        answer.failures = failures
        return answer


def _noted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def use(self: Answer, *args: Any) -> Any:
        frame: FrameType | None = sys._getframe(1)
        if frame is not None and (place := _upstream(frame)) is not None:
            self.failures.uses.setdefault(f"an element is used in {name} at {place}")
        return original(self, *args)

    return use


for _name in _USES:
    if (_original := getattr(int, f"__{_name}__", None)) is not None:
        setattr(Answer, f"__{_name}__", _noted(_name, _original))


@contextmanager
def catching(failures: Failures) -> Iterator[None]:
    """Record errors in upstream's code in this thread that reveal reads of values on the host, caught there or not."""

    def on_call(frame: FrameType, event: str, _: Any) -> Any:
        if event != "call" or not str(frame.f_globals.get("__name__", "")).startswith(PACKAGE):
            return None
        frame.f_trace_lines = False
        return on_exception

    def on_exception(frame: FrameType, event: str, raised: Any) -> Any:
        if event == "exception":
            kind, error, _ = raised
            if issubclass(kind, ShardhubError):
                failures.refused.append(error)
            elif issubclass(kind, ValueError | RuntimeError) and str(error).startswith(_EVALUATION):
                failures.uses.setdefault(f"{kind.__name__} at {_place(frame)}")
        return on_exception

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(before)


def _upstream(frame: FrameType | None) -> str | None:
    if frame is None or not str(frame.f_globals.get("__name__", "")).startswith(PACKAGE):
        return None
    return _place(frame)


def _place(frame: FrameType) -> str:
    module = str(frame.f_globals.get("__name__", "")).rpartition(".")[2]
    return f"{module}.py:{frame.f_lineno} ({frame.f_code.co_qualname})"
