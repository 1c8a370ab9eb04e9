"""Small models of the same configuration: the same kinds of layers, windows, blocks and experts, with random weights.

They are narrow, because widths do not affect what a forward does as a function of positions. They have few layers, if
the first few include every kind of layer, and at the cuts the same kinds on either side.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from shardhub.errors import UnsupportedModel
from shardhub.model.arrays import placeholder
from shardhub.model.build import Blueprint, instantiate, module_layers, sanitize, spec_of
from shardhub.model.lazily import make_cache, run_lazily
from shardhub.tensors import TensorSpec

# Parameters up to which a model is small enough unchanged, and beyond which a miniature would take too long.
_SMALL = 8_000_000
_LARGEST = 300_000_000
# Positions up to which lengths stay unchanged. If there are longer ones, they are divided by one number that brings the
# longest down to the second limit, because the cost of attention grows with its square.
MAX_LENGTH = 512
_DIVIDED_LENGTH = 128
# Most random numbers in the pool from which all tensors are taken, each at a different offset. A pool twice as large as
# the model is large enough.
_POOL = 1 << 22
# Value of widths without a known small value; fields that count something else.
_NARROW = 64
_NO_WIDTHS = frozenset(("vocab_size", "max_position_embeddings", "n_positions"))
# Numbers of layers to try for a small model, and most kinds of layers that one setting can distinguish.
_DEPTHS = (8, 10, 12, 16, 20, 24)
_MAX_KINDS = 8
_QUANTIZATION = ("quantization", "quantization_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class Miniature:
    """A small model for a twin.

    Attributes:
        blueprint: Its configuration and tensors, none of them quantised.
        cuts: Positions at which it is cut, each between the same kinds of layers as a cut of the full model.
        length_divisor: The number by which lengths beyond `MAX_LENGTH` were divided.
    """

    blueprint: Blueprint
    cuts: tuple[int, ...]
    length_divisor: int

    def weights(self, seed: int) -> dict[str, mx.array]:
        """Random weights by name: norms differ from the identity, nothing is zero, packed integers are arbitrary."""
        mx.random.seed(seed)
        model = instantiate(self.blueprint.config)
        initial = dict(tree_flatten(model.parameters()))
        sizes = [_elements(spec) for spec in self.blueprint.tensors.values()]
        num_offsets = min(_POOL, 2 * sum(sizes))
        pool = mx.random.normal((num_offsets + max(sizes),))
        made: dict[str, mx.array] = {}
        at = 0
        for name, spec in self.blueprint.tensors.items():
            array = initial[name]
            size = array.size
            at = (at + 7919 + size) % num_offsets
            if not mx.issubdtype(array.dtype, mx.floating):
                highest = min(1 << 8 * array.itemsize, 1 << 31) - 1
                made[name] = mx.random.randint(0, highest, array.shape).astype(array.dtype)
            elif array.ndim < 2 or "norm" in name:
                made[name] = (array + 0.05 * pool[at : at + size].reshape(array.shape)).astype(array.dtype)
            else:
                scaled = pool[at : at + size] * spec.shape[-1] ** -0.5
                made[name] = scaled.reshape(array.shape).astype(array.dtype)
        mx.eval(list(made.values()))
        return made


def make_miniature(blueprint: Blueprint, lengths: Sequence[int], cuts: Sequence[int]) -> Miniature:
    """Make a small model of the same configuration.

    Args:
        blueprint: The full model.
        lengths: Numbers with which its forward compares positions.
        cuts: Positions at which it is cut.

    Raises:
        UnsupportedModel: No small model of its configuration can be built.
    """
    config = {key: copy.deepcopy(value) for key, value in blueprint.config.items() if key not in _QUANTIZATION}
    module = type(instantiate(config)).__module__.rpartition(".")[2]
    size = sum(_elements(spec) for spec in blueprint.tensors.values())
    widths = miniature_widths().get(module, {})
    if size > _SMALL:
        config = _narrowed(config, module, widths)
    divisor = 1
    if long := {length for length in lengths if length > MAX_LENGTH}:
        full = copy.deepcopy(config)
        divisor = -(-max(long) // _DIVIDED_LENGTH)
        _shorten(config, long, set(widths), divisor)
        if config == full:  # the numbers are constants in the code
            divisor = 1
    config, positions = _fewer_layers(config, cuts)
    if size > _SMALL:
        _narrow_more(config, {path.rpartition(".")[2] for path in widths} | _NO_WIDTHS, set(lengths))
    model = instantiate(config)
    _tie(model, blueprint)
    tensors = {name: spec_of(array) for name, array in tree_flatten(model.parameters())}
    if strange := sorted(tensors.keys() - blueprint.tensors.keys()):
        raise UnsupportedModel(
            "The small model made for a test run has a tensor that the full model lacks.", why=f"{strange[0]}."
        )
    if (narrow := sum(_elements(spec) for spec in tensors.values())) > _LARGEST:
        raise UnsupportedModel(
            "The model cannot be made small enough for a test run.",
            why=f"Its smallest form has {narrow / 1e6:.0f} million parameters, and the limit is {_LARGEST / 1e6:.0f} "
            "million.",
        )
    return Miniature(blueprint=Blueprint(config, tensors), cuts=positions, length_divisor=divisor)


def _fewer_layers(config: dict[str, Any], cuts: Sequence[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Keep as many of the first layers as show every kind of layer and of cut; all of them if a few do not suffice.

    Returns:
        The configuration, and the positions to cut at.
    """
    kinds = _kinds(instantiate(config))
    borders = {(kinds[cut - 1], kinds[cut]) for cut in cuts}
    for count in _DEPTHS:
        if count >= len(kinds):
            break
        fewer = _first_layers(config, len(kinds), count)
        try:
            fewer_kinds = _kinds(instantiate(fewer))
        except (UnsupportedModel, IndexError):
            continue
        if fewer_kinds != kinds[:count] or set(fewer_kinds) != set(kinds):
            continue
        # From the middle outwards, so that there are layers on both sides.
        places = sorted(range(1, count), key=lambda position: abs(position - count // 2))
        chosen = {(fewer_kinds[place - 1], fewer_kinds[place]): place for place in reversed(places)}
        if borders <= chosen.keys():
            return fewer, tuple(sorted(chosen[border] for border in borders))
    return config, tuple(cuts)


def _kinds(model: nn.Module) -> list[Any]:
    """The kind of each layer: its classes, the names of its tensors, its settings and its caches.

    A setting that differs in nearly every layer, such as the layer's index, is ignored.
    """
    layers = module_layers(model)
    caches = make_cache(model)
    settings = [
        {path: "all" if value == len(layers) else value for path, value in _settings(layer)} for layer in layers
    ]
    paths = {path for each in settings for path in each}
    telling = sorted(path for path in paths if len({str(each.get(path)) for each in settings}) <= _MAX_KINDS)
    shapes = [tuple(name for name, _ in tree_flatten(layer.parameters())) for layer in layers]
    kept = [_cache_kind(entry) for entry in caches] if len(caches) == len(layers) else ["shared"]
    return [
        (shape, tuple(str(each.get(path)) for path in telling), kept[index % len(kept)])
        for index, (shape, each) in enumerate(zip(shapes, settings, strict=True))
    ]


def _settings(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """Numbers, texts and flags of a layer and all its modules, and their classes, by path."""
    for path, module in layer.named_modules():
        yield f"{path}:", type(module).__name__
        for name, value in vars(module).items():
            if not name.startswith("_") and isinstance(value, bool | int | float | str):
                yield f"{path}.{name}", value


def _cache_kind(entry: Any) -> Any:
    parts = getattr(entry, "caches", None)
    if parts is not None:
        return tuple(_cache_kind(part) for part in parts)
    return type(entry).__name__, getattr(entry, "max_size", None), getattr(entry, "chunk_size", None)


def _first_layers(config: dict[str, Any], num_layers: int, count: int) -> dict[str, Any]:
    """A configuration with only its first layers, in every field with their number or an entry for each."""
    fewer = copy.deepcopy(config)
    for block in _blocks(fewer):
        for key, value in block.items():
            if type(value) is int and value == num_layers and "layer" in key:
                block[key] = count
            elif isinstance(value, list | str) and len(value) == num_layers and key != "model_type":
                block[key] = value[:count]
            elif isinstance(value, list) and "layer" in key and all(type(item) is int for item in value):
                block[key] = [item for item in value if item < count]
    return fewer


@cache
def miniature_widths() -> Mapping[str, Mapping[str, int]]:
    """For each model module, the fields of its configuration that are widths, and a compatible small value of each.

    `tests/architectures/widths.py` makes the table: widths are numbers that change the shapes of tensors but not their
    set of names.
    """
    table: dict[str, dict[str, int]] = json.loads(files("shardhub.model").joinpath("miniatures.json").read_text())
    return table


def _narrowed(config: dict[str, Any], module: str, widths: Mapping[str, int]) -> dict[str, Any]:
    """The configuration with all known widths made small, or all but one family where the model does not run otherwise.

    Raises:
        UnsupportedModel: No widths are known, or the model runs with none of these choices.
    """
    families = sorted({_family(path) for path in widths})
    for left_out in ("", *families):
        narrow = copy.deepcopy(config)
        _narrow(narrow, {path: value for path, value in widths.items() if _family(path) != left_out})
        fewer, _ = _fewer_layers(narrow, ())
        try:
            model = instantiate(fewer)
            model.eval()
            cache = make_cache(model)
            for length in (4, 1):
                run_lazily(model, mx.zeros((1, length), mx.int32), cache)
        except UnsupportedModel:
            continue
        return narrow
    raise UnsupportedModel(f"{module} cannot be narrowed to any known width.")


def _family(path: str) -> str:
    """The prefix of a field's name: `mamba_n_heads` and `mamba_d_ssm` belong together."""
    return path.rpartition(".")[2].partition("_")[0]


def _narrow(config: dict[str, Any], widths: Mapping[str, int]) -> None:
    heads = _heads(config)
    for path, value in widths.items():
        *parents, name = path.split(".")
        block = _block(config, parents)
        if block is None:
            continue
        old = block.get(name)
        if "intermediate" in name or "ffn" in name:
            value = min(value, _NARROW)
        block[name] = [value] * len(old) if isinstance(old, list) else value
    # Queries that share keys must still do so: upstream's code for the two cases differs.
    for before, block in zip(heads, _blocks(config), strict=True):
        if before is None or not isinstance(block.get("num_attention_heads"), int):
            continue
        queries, keys = before
        now = block["num_attention_heads"]
        block["num_key_value_heads"] = now if queries == keys else 1 if keys == 1 or now < 4 else now // 2


def _narrow_more(config: dict[str, Any], known: set[str], lengths: set[int]) -> None:
    """Reduce fields that the table lacks: large numbers that change the shapes of tensors but not their names."""
    tensors = _shapes(config)
    for block in _blocks(config):
        for key, value in block.items():
            if type(value) is not int or value <= MAX_LENGTH or key in known or value in lengths:
                continue
            block[key] = _NARROW
            try:
                narrow = _shapes(config)
            except (UnsupportedModel, IndexError):
                narrow = {}
            if narrow.keys() == tensors.keys() and narrow != tensors:
                tensors = narrow
            else:
                block[key] = value


def _shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: array.shape for name, array in tree_flatten(instantiate(config).parameters())}


def _heads(config: dict[str, Any]) -> list[tuple[int, int] | None]:
    """Numbers of query heads and key heads, for each block that has both."""
    heads: list[tuple[int, int] | None] = []
    for block in _blocks(config):
        queries, keys = block.get("num_attention_heads"), block.get("num_key_value_heads")
        heads.append((queries, keys) if type(queries) is int and type(keys) is int else None)
    return heads


def _shorten(config: dict[str, Any], lengths: set[int], widths: set[str], divisor: int) -> None:
    """Divide every number that is one of these lengths, anywhere, including in per-layer lists."""

    def shorter(value: Any) -> Any:
        if isinstance(value, list):
            return [shorter(item) for item in value]
        return max(2, value // divisor) if type(value) is int and value in lengths else value

    names = {path.rpartition(".")[2] for path in widths}
    for block in _blocks(config):
        for key, value in block.items():
            if key not in names and not isinstance(value, dict):
                block[key] = shorter(value)


def _blocks(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A configuration and all configurations nested in it."""
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from _blocks(value)


def _block(config: dict[str, Any], path: Sequence[str]) -> dict[str, Any] | None:
    block: Any = config
    for name in path:
        block = block.get(name) if isinstance(block, dict) else None
    return block if isinstance(block, dict) else None


def _tie(model: nn.Module, blueprint: Blueprint) -> None:
    """Let upstream drop parts that the checkpoint lacks, such as the head of a tied model."""
    try:
        sanitize(model, {name: placeholder(spec) for name, spec in blueprint.tensors.items()})
    except UnsupportedModel:
        return  # sanitize rearranges tensors by their shapes, which differ here


def _elements(spec: TensorSpec) -> int:
    size = 1
    for length in spec.shape:
        size *= length
    return size * (8 if spec.dtype == "U32" else 1)
