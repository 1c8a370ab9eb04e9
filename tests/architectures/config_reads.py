"""Which fields of config.json a model module of mlx-lm reads, and which ones transformers' own code for it reads."""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx_lm.models
from mlx_lm.utils import _get_classes

_MODELS = Path(next(iter(mlx_lm.models.__path__)))
# Classes of transformers' modeling files that are no part of the decoder.
_NOT_TEXT = re.compile(
    r"Vision|Visual|Audio|Image|Projector|Classification|QuestionAnswering|PreTrained|PatchMerger|Video|MultiModal"
)
_CONFIG_ROOTS = {
    "config",
    "self.config",
    "text_config",
    "self.text_config",
    "self.config.text_config",
    "config.text_config",
}
# Read for every model, by the code of masks, rope and tied heads.
_READ_FOR_ALL = ("sliding_window", "layer_types", "attention_chunk_size", "rope_parameters", "tie_word_embeddings")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What transformers' configuration class for a model type declares about its text model.

    Attributes:
        reads: Fields that the decoder's code reads.
        defaults: Values of all fields.
        aliases: Other names of fields, each with the field's own name.
        theta: Base of the rotary embedding where no field has one.
    """

    reads: frozenset[str]
    defaults: Mapping[str, Any]
    aliases: Mapping[str, str]
    theta: float | None


def module_reads(module: str, config: Mapping[str, Any]) -> list[str]:
    """Fields that the installed module declares in its arguments and reads somewhere, found in its source.

    A field that is declared only, or read only by an assertion of the same name, counts as this text has it: a name
    that is loaded from anything but a layer's own attribute is read.

    Args:
        module: Of mlx_lm.models.
        config: A configuration that it can be built from.
    """
    modules = [importlib.import_module(f"mlx_lm.models.{name}") for name in sorted(_imported(module))]
    with _made(modules) as classes:
        model_class, args_class = _get_classes(config=dict(config))
        model_class(args_class.from_dict(copy.deepcopy(dict(config))))
    declared = {field.name for cls in classes for field in dataclasses.fields(cls)}
    loaded: set[str] = set()
    for source in modules:
        loaded |= _loaded(ast.parse(Path(str(source.__file__)).read_text()))
    return sorted(declared & loaded)


def known(model_type: str) -> Known | None:
    """What the installed transformers declares about a model type; None if it has no class for the type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return None
    config = CONFIG_MAPPING[model_type]().get_text_config()
    aliases = dict(type(config).attribute_map)
    folder = Path(str(sys.modules[type(config).__module__].__file__)).parent
    reads = {aliases.get(name, name) for path in folder.glob("modeling_*.py") for name in _config_loads(path)}
    defaults = config.to_dict()
    reads |= set(_READ_FOR_ALL)
    theta = getattr(config, "default_theta", None)
    return Known(
        reads=frozenset(reads & defaults.keys()),
        defaults=defaults,
        aliases=aliases,
        theta=theta.get("global") if isinstance(theta, dict) else theta,
    )


def _imported(module: str, seen: set[str] | None = None) -> set[str]:
    """The module and the other model modules that it imports."""
    seen = set() if seen is None else seen
    if module in seen:
        return seen
    seen.add(module)
    for node in ast.walk(ast.parse((_MODELS / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                if name not in ("base", "cache") and (_MODELS / f"{name}.py").is_file():
                    _imported(name, seen)
    return seen


@contextmanager
def _made(modules: list[Any]) -> Iterator[set[type]]:
    """The dataclasses of these modules that are instantiated inside the block."""
    made: set[type] = set()
    own = [
        cls
        for module in modules
        for cls in vars(module).values()
        if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == module.__name__
    ]
    originals = {cls: cls.__init__ for cls in own if "__init__" in vars(cls)}  # type: ignore[misc]
    for cls, original in originals.items():
        cls.__init__ = _noting(original, made)  # type: ignore[misc]
    try:
        yield made
    finally:
        for cls, original in originals.items():
            cls.__init__ = original  # type: ignore[misc]


def _noting(original: Any, made: set[type]) -> Any:
    @functools.wraps(original)
    def init(self: Any, *args: Any, **values: Any) -> None:
        made.add(type(self))
        original(self, *args, **values)

    return init


def _loaded(tree: ast.Module) -> set[str]:
    """Names of attributes that are read, except those of layers and of the model itself."""
    arguments = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(mark) for mark in node.decorator_list)
    ]
    in_arguments = {id(node) for cls in arguments for node in ast.walk(cls)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            root = ast.unparse(node.value)
            if root in ("self.model", "layer.self_attn") or (root == "self" and id(node) not in in_arguments):
                continue
            names.add(node.attr)
        elif name := _getattr_name(node):
            names.add(name)
    return names


def _config_loads(path: Path) -> set[str]:
    names: set[str] = set()
    for top in ast.parse(path.read_text()).body:
        if isinstance(top, ast.ClassDef | ast.FunctionDef) and _NOT_TEXT.search(top.name):
            continue
        for node in ast.walk(top):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                if ast.unparse(node.value) in _CONFIG_ROOTS:
                    names.add(node.attr)
            elif (name := _getattr_name(node)) and ast.unparse(node.args[0]) in _CONFIG_ROOTS:  # type: ignore[attr-defined]
                names.add(name)
    return names


def _getattr_name(node: ast.AST) -> str | None:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) > 1:
        name = node.args[1]
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            return name.value
    return None
