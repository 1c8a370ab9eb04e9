"""What mlx_lm.convert makes of a checkpoint: decided from its headers, computed from some of its tensors.

Upstream's own code decides and computes. It sees the names and shapes of the whole model, and the values of one weight
file's tensors at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.checkpoint.config import mlx_quantization
from shardhub.checkpoint.header import Header, StoredTensor
from shardhub.errors import UnsupportedModel
from shardhub.manifest import SourceQuantization, canonical, config_digest, sha256_hex
from shardhub.model.arrays import is_float, placeholder
from shardhub.model.build import Blueprint, first_line, instantiate, layer_of_tensors, sanitize, spec_of
from shardhub.model.conversion import Conversion
from shardhub.model.tracing import trace
from shardhub.upstream.mlx_lm_code import mixed_predicate, quantize

if TYPE_CHECKING:
    from shardhub.upstream.mlx_lm_code import Predicate

# Values of config.json's dtype to which mlx_lm.convert casts. Source: mlx_lm/convert.py, MODEL_CONVERSION_DTYPES.
_CAST_TO = ("float16", "bfloat16", "float32")
_NAMES_SHOWN = 4


class Quantiser:
    """What mlx_lm.convert makes of a checkpoint, decided from its headers.

    Args:
        checkpoint: The checkpoint.
        quantisation: How to quantise it.

    Attributes:
        config: config.json with upstream's record of the quantisation.
        tensors: Dtype and shape of all quantised tensors, by final name.
        notes: Which modules stay unquantised because of the group size.

    Raises:
        As `quantise`.
    """

    def __init__(self, checkpoint: Checkpoint, quantisation: SourceQuantization) -> None:
        self._where = checkpoint.where
        self._source_config = dict(checkpoint.config)
        self._quantisation = quantisation
        if mlx_quantization(self._source_config) is not None:
            raise UnsupportedModel(
                f"{self._where} is quantised already.",
                why="Its config.json says so, and quantised weights are not quantised again.",
                hint="Split it as it is, or start from the model before quantisation.",
            )
        self._stored = {name: tensor.spec for name, tensor in checkpoint.tensors.items()}
        self._conversion = Conversion(self._source_config, self._stored)
        self._model = Blueprint(self._source_config, self._conversion.tensors).build()
        self._leaves: dict[str, nn.Module] = dict(tree_flatten(self._model.leaf_modules(), is_leaf=nn.Module.is_module))
        self._dtype = _cast_dtype(self._source_config)
        self._can_cast: Callable[[str], bool] = getattr(self._model, "cast_predicate", lambda _: True)
        self._predicate = self._choose_predicate()
        made, self.config = self._quantised(
            {name: placeholder(spec) for name, spec in self._conversion.tensors.items()}
        )
        self.tensors = {name: spec_of(array) for name, array in made.items()}
        self._check_quantised()
        self.notes = self._undivided()
        self._sources = self._find_sources()
        self._groups = self._group()
        self._version = sha256_hex(
            canonical(
                [
                    *(config_digest(self._source_config), quantisation.model_dump()),
                    *(version("mlx"), version("mlx-lm"), str(mx.default_device())),
                    {name: [file.size_bytes, file.version, file.digest] for name, file in checkpoint.files.items()},
                ]
            )
        )

    def headers(self) -> dict[str, Header]:
        """Headers of weight files with one layer's tensors each, or those of one module outside the layers."""
        files = {}
        for file, floats in self._groups.items():
            names = [name for name in self.tensors if self._float_of(name) in floats]
            tensors, at = {}, 0
            for name in names:
                stop = at + self.tensors[name].size_bytes
                tensors[name] = StoredTensor(spec=self.tensors[name], file=file, start=at, stop=stop)
                at = stop
            specs = [[name, tensor.spec.dtype, list(tensor.spec.shape)] for name, tensor in tensors.items()]
            files[file] = Header(
                size_bytes=at, version=self._version, digest=sha256_hex(canonical(specs)), tensors=tensors
            )
        return files

    def sources(self, file: str) -> set[str]:
        """Names in the checkpoint of the tensors that a file of `headers` is computed from."""
        return {stored for name in self._groups[file] for stored in self._sources[name]}

    def compute(self, file: str, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The tensors of a file of `headers`, unevaluated.

        Args:
            file: Its name.
            arrays: The tensors of `sources`.
        """
        floats = self._groups[file]
        final = {name: arrays[self._conversion.copied[name]] for name in floats & self._conversion.copied.keys()}
        if computed := floats & self._conversion.computed:
            everything = {name: arrays.get(name, placeholder(spec)) for name, spec in self._stored.items()}
            clean = sanitize(instantiate(self._source_config), everything)
            final |= {name: clean[name] for name in computed}
        return self._quantised(final)[0]

    def _quantised(self, floats: Mapping[str, mx.array]) -> tuple[dict[str, mx.array], dict[str, Any]]:
        """Cast and quantise all tensors of some modules.

        Returns:
            Their tensors by final name, and the config that records how they were quantised.
        """
        rest = {name: self._cast(name, array) for name, array in floats.items()}
        modules = []
        for path, leaf in self._leaves.items():
            names = [f"{path}.{name}" for name, _ in tree_flatten(leaf.parameters())]
            if names and names[0] in rest:
                module = copy.copy(leaf)
                module.update(tree_unflatten([(name.removeprefix(f"{path}."), rest.pop(name)) for name in names]))
                modules.append((path, module))
        if not modules:  # a parameter of a module that has others inside
            return rest, {}
        part = nn.Module()
        for name, branch in tree_unflatten(modules).items():
            part[name] = branch
        config = self._quantise(part)
        return dict(tree_flatten(part.parameters())) | rest, config

    def _quantise(self, part: nn.Module) -> dict[str, Any]:
        """Quantise a tree of modules in place; returns the config that records it."""
        own = self._quantisation
        try:
            return quantize(
                part,
                self._source_config,
                bits=own.bits,
                group_size=own.group_size,
                mode=own.mode,
                predicate=self._predicate,
            )
        except (ValueError, TypeError) as error:
            self._refuse(error)

    def _cast(self, name: str, array: mx.array) -> mx.array:
        if self._dtype is None or not self._can_cast(name) or not is_float(array):
            return array
        return array.astype(self._dtype)

    def _choose_predicate(self) -> Predicate | None:
        if (recipe := self._quantisation.recipe) is None:
            own: Predicate | None = getattr(self._model, "quant_predicate", None)
            return own
        try:
            return mixed_predicate(recipe, self._model, self._quantisation.group_size)
        except ValueError as error:
            self._refuse(error)

    def _check_quantised(self) -> None:
        if self.tensors == self._conversion.tensors:
            size = self._quantisation.group_size
            raise UnsupportedModel(
                f"No weight of {self._where} can be quantised in groups of {size}.",
                why=f"No row of its matrices has a multiple of {size} elements.",
                hint="Give a smaller `group_size`, or another `mode`.",
            )

    def _undivided(self) -> tuple[str, ...]:
        size = self._quantisation.group_size
        paths = [
            path
            for path, leaf in self._leaves.items()
            if hasattr(leaf, "to_quantized") and leaf.weight.shape[-1] % size  # as upstream's quantize_model does
        ]
        if not paths:
            return ()
        more = f" and {len(paths) - _NAMES_SHOWN} more" if len(paths) > _NAMES_SHOWN else ""
        shown = f"{', '.join(paths[:_NAMES_SHOWN])}{more}"
        return (f"groups of {size} do not divide the rows of {shown}, which stay as they are",)

    def _find_sources(self) -> dict[str, Collection[str]]:
        """For each tensor before quantisation, the tensors of the checkpoint that it is made of."""
        sources: dict[str, Collection[str]] = {name: (stored,) for name, stored in self._conversion.copied.items()}
        if not self._conversion.computed:
            return sources
        finals: list[str] = []

        def clean(arrays: Mapping[str, mx.array], _: object) -> list[mx.array]:
            result = sanitize(instantiate(self._source_config), dict(arrays))
            finals[:] = result
            return list(result.values())

        graph = trace(clean, {name: placeholder(spec) for name, spec in self._stored.items()})
        for index, name in enumerate(finals):
            if name in self._conversion.computed:
                sources[name] = graph.reach([index])
        return sources

    def _group(self) -> dict[str, set[str]]:
        """Names before quantisation, by the file that their tensors are in."""
        groups: dict[str, set[str]] = {}
        for name, layer in layer_of_tensors(self._model).items():
            file = name.rpartition(".")[0] if layer is None else f"layer {layer}"
            groups.setdefault(f"{file}, quantised", set()).add(name)
        return groups

    def _float_of(self, name: str) -> str:
        """Name of the tensor from which a quantised one is made: scales and biases come from the weight."""
        return name if name in self._conversion.tensors else f"{name.rpartition('.')[0]}.weight"

    def _refuse(self, error: Exception) -> NoReturn:
        own = self._quantisation
        named = f"the recipe {own.recipe}" if own.recipe is not None else f"the mode {own.mode}"
        raise UnsupportedModel(
            f"{self._where} cannot be quantised with {named}.",
            why=f"mlx-lm stopped: {first_line(error)}.",
            hint="Give another `mode`, or another `recipe` or none.",
        ) from error


def _cast_dtype(config: Mapping[str, Any]) -> mx.Dtype | None:
    """The dtype to which mlx_lm.convert casts floats; None leaves them. Source: mlx_lm/convert.py, convert."""
    named = config.get("torch_dtype")
    if named is None and (inner := config.get("text_config")):
        named = inner.get("dtype")
    return getattr(mx, named) if named in _CAST_TO else None
