"""Preparing the process for the imports of MLX and mlx_lm, and undoing what they change: see `watch`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

from shardhub.blas import use_chosen_blas
from shardhub.kernel_folder import use_private_folder
from shardhub.open_files import allow_open_files, limit_kept

# mlx_lm sets the limit to this, for models of many files, and lowers the hard limit to twice that: without privileges
# that cannot be raised again, and if it was lower already the import fails.
_OPEN_FILES = 2048
_LIMITING = "mlx_lm.utils"
_COMPILING = "mlx.core"


def watch() -> None:
    """Prepare for the imports of MLX and mlx_lm, and undo what they change; to be called before either is imported."""
    if not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())
        if _COMPILING in sys.modules:
            use_private_folder()


def hide_torch() -> None:
    """Make PyTorch unavailable in this process even if it is installed: transformers loads it with any tokenizer.

    For our own programs, not for a library: nothing else in the process can import it either.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # the import system's mark for "not installed"


class _Watch(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """A module's spec if its import needs care; None leaves it to other finders."""
        if name == _COMPILING:
            use_private_folder()
            use_chosen_blas()
        if name != _LIMITING:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _KeepingLimit(spec.loader.name, spec.loader.path)
        return spec


class _KeepingLimit(SourceFileLoader):
    """Runs a module without letting it change the limit on open files, then raises the limit to what mlx_lm needs."""

    def exec_module(self, module: ModuleType) -> None:
        with limit_kept():
            super().exec_module(module)
        allow_open_files(_OPEN_FILES)
