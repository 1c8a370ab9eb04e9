"""Dissections that a run of the tests has made, kept in a folder that all its processes share.

To dissect a tiny model takes about four seconds of a processor, and hundreds of tests give the same few models to
commands. What a dissection decides depends on config.json and the headers alone, so the first one that a run makes
stands for the others. Tests of the proof itself make each of theirs: see `remembering` in conftest.py.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

# The folder's variable: processes that tests start have it too.
FOLDER = "PYTEST_KNOWN_DISSECTIONS"
_MODULE = "shardhub.model.dissection"
# Where mlx-lm has the code of an architecture.
_MODELS = "mlx_lm.models"
_is_remembering = False


@contextmanager
def remembering(whether: bool = True) -> Iterator[None]:
    """Take dissections from the folder, and keep there what is not in it yet."""
    global _is_remembering
    before, _is_remembering = _is_remembering, whether
    try:
        yield
    finally:
        _is_remembering = before


def prepare(*, remembers: bool = False) -> None:
    """Have this process's dissections obey `remembering`, from the moment it imports their module.

    Args:
        remembers: Whether they do so from the beginning.
    """
    global _is_remembering
    _is_remembering = _is_remembering or remembers
    if _MODULE in sys.modules:
        _change(sys.modules[_MODULE])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the module of dissections, and changes it once it is loaded."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            _change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _change(module: ModuleType) -> None:
    """Have the module's class look into the folder first."""
    dissection = module.Dissection
    make = dissection.__init__
    if hasattr(make, "__wrapped__"):
        return

    @functools.wraps(make)
    def begin(self: Any, config: Any, stored: Any) -> None:
        self._key = _key(config, stored)
        if (kept := _kept(self._key)) is not None:
            vars(self).update(kept)
            return
        make(self, config, stored)
        _keep(self._key, vars(self))

    dissection.__init__ = begin
    for name in ("stages", "prove", "batch_refusal"):
        setattr(dissection, name, _remembered(getattr(dissection, name)))


def _remembered(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *arguments: Any) -> Any:
        key = self._key and f"{self._key} {method.__name__} {arguments!r}"
        if (kept := _kept(key)) is not None:
            result, self.twin = kept
            return result
        result = method(self, *arguments)
        _keep(key, (result, self.twin))
        return result

    return call


def _key(config: Any, stored: Any) -> str:
    """What a dissection depends on; empty if it depends on code that only this process has."""
    import mlx.core as mx
    import mlx_lm

    code = Path(mlx_lm.__file__).parent
    name = f"{_MODELS}.{config.get('model_type')}"
    if name in sys.modules:
        origin = getattr(sys.modules[name], "__file__", None) or ""
    else:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        origin = str(code) if spec is None else spec.origin or ""
    if not origin.startswith(str(code)):
        return ""
    return repr((code, mx.default_device(), os.environ.get("SHARDHUB_BLAS"), config, dict(stored)))


def _kept(key: str) -> Any:
    return _read(key) if key and _is_remembering else None


def _keep(key: str, value: Any) -> None:
    if key and _is_remembering:
        _write(key, value)


def shared(key: str, make: Callable[[], T]) -> T:
    """A value that the first process of the run which asks for it makes for all."""
    value = _read(key)
    if value is None:
        value = make()
        _write(key, value)
    return value


def _path(key: str) -> Path | None:
    folder = os.environ.get(FOLDER)
    return Path(folder) / hashlib.sha256(key.encode()).hexdigest() if folder else None


def _read(key: str) -> Any:
    path = _path(key)
    return pickle.loads(path.read_bytes()) if path is not None and path.exists() else None


def _write(key: str, value: Any) -> None:
    if (path := _path(key)) is not None:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
            pickle.dump(value, part)
        os.replace(part.name, path)
