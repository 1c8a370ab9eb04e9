"""Detecting calls of upstream's forward whose results do not depend on its inputs alone: clocks, random numbers, files.

This uses Python's own profiling, which also reports functions in C. It does not see MLX's random functions, which are
detected by the state they advance.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import mlx.core as mx
import numpy as np

from shardhub.model.content import PACKAGE

# Modules whose functions may return different values in another process or at another time.
_MODULES = frozenset((
    "time", "random", "_random", "datetime", "_datetime", "os", "posix", "nt", "uuid", "_uuid", "secrets", "socket",
    "_socket", "platform", "subprocess", "_thread", "threading", "gc", "resource", "tempfile", "getpass", "psutil",
    "numpy.random", "numpy.random.mtrand", "numpy.random._generator", "pathlib", "io", "_io",
))  # fmt: skip
# Such functions in other modules.
_FUNCTIONS = frozenset((
    ("builtins", "id"), ("builtins", "open"), ("builtins", "input"), ("builtins", "hash"), ("sys", "getrefcount"),
    ("sys", "_getframe"),
))  # fmt: skip
# Functions in those modules that give the same result everywhere.
_HARMLESS = frozenset(("fspath", "timedelta", "__init__", "__new__", "__enter__", "__exit__", "acquire", "release"))
# Modules that may be between upstream's call and the function it reaches.
_BETWEEN = frozenset(
    ("_collections_abc", "collections.abc", "os", "random", "uuid", "secrets", "datetime", "tempfile", "threading")
)
_MAX_BETWEEN = 6


@dataclass(slots=True)
class Calls:
    """Functions that were called, in order, each with the place of the call: `time.monotonic at llama.py:17`."""

    uses: dict[str, None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.uses)

    def __str__(self) -> str:
        return ", ".join(list(self.uses)[:3])


@contextmanager
def noting(calls: Calls) -> Iterator[None]:
    """Record calls of upstream's model code in this thread, inside the block, that depend on more than its inputs.

    Other profilers see nothing during the block.
    """

    drawn: Any = mx.random.state
    numbers = _numpy_state()
    last = drawn[0]

    def on_event(frame: FrameType, event: str, called: Any) -> None:
        nonlocal last
        if event == "c_call":
            owner = called.__self__ if called.__module__ is None else None
            module = called.__module__ if owner is None else _module(owner)
            name, caller = called.__name__, frame
        elif event == "call" and frame.f_back is not None:
            module, name, caller = frame.f_globals.get("__name__"), frame.f_code.co_name, frame.f_back
        else:
            if event == "return" and drawn[0] is not last:
                last = drawn[0]
                if (place := _upstream(frame, past_all=True)) is not None:
                    calls.uses.setdefault(f"mlx.core.random before {place}")
            return
        is_outside = (module in _MODULES and name not in _HARMLESS) or (module, name) in _FUNCTIONS
        if is_outside and (place := _upstream(caller)) is not None:
            calls.uses.setdefault(f"{module}.{name} at {place}")

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        yield
    finally:
        sys.setprofile(before if callable(before) else None)  # a profiler in C cannot be restored from here
    if numbers != _numpy_state():
        calls.uses.setdefault("numpy.random in its forward")


def _numpy_state() -> tuple[bytes, int]:
    """State of NumPy's global generator, which its functions advance."""
    state: Any = np.random.get_state()
    return state[1].tobytes(), state[2]


def _module(owner: Any) -> str | None:
    """The module of a built-in method's object or class."""
    module: str | None = owner.__module__ if isinstance(owner, type) else type(owner).__module__
    return module


def _upstream(frame: FrameType | None, *, past_all: bool = False) -> str | None:
    """The place in upstream's code that a call comes from; None if it does not come from there.

    Args:
        frame: The frame of the call.
        past_all: Whether any code may be in between, instead of only the standard library's wrappers.
    """
    for _ in range(_MAX_BETWEEN):
        if frame is None:
            return None
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(PACKAGE):
            return f"{module.rpartition('.')[2]}.py:{frame.f_lineno} ({frame.f_code.co_qualname})"
        if module not in _BETWEEN and not past_all:
            return None
        frame = frame.f_back
    return None
