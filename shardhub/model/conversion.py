"""Converting a checkpoint's tensors to a model's: which are copied, which are computed, and computing those.

Upstream's own sanitize decides and computes. It sees the full set of tensors exactly once: on a part of them, or on its
own result, it is silently wrong for some architectures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import numpy as np

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.errors import UnsupportedModel, WeightFileError
from shardhub.manifest import canonical, config_digest, sha256_hex
from shardhub.model.arrays import placeholder
from shardhub.model.build import instantiate, sanitize, spec_of
from shardhub.open_files import allow_open_files
from shardhub.tensors import TensorSpec

# dtypes of the safetensors format that MLX's reader refuses.
_NOT_READ = ("F64", "F8_E5M2")
# Open files of a process beside weight files: libraries, logs, connections.
_OTHER_FILES = 64


class Conversion:
    """The result of upstream's sanitize for a checkpoint's tensors, decided from their headers.

    Args:
        config: The model's config.json.
        stored: Headers of the tensors in the checkpoint.

    Attributes:
        copied: Name in the checkpoint by final name, for the tensors that sanitize leaves unchanged.
        specs: Dtype and shape by final name, for the tensors that it computes.
        tensors: Dtype and shape of all tensors by final name, in final order.
        recipe: Digest of everything that the computed tensors depend on beside the checkpoint's bytes.

    Raises:
        UnsupportedModel: The architecture is unknown, the tensors do not match the config, or what sanitize does
            depends on their values.
    """

    def __init__(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> None:
        self._config = dict(config)
        self.copied: dict[str, str] = {}
        self.specs: dict[str, TensorSpec] = {}
        self.tensors: dict[str, TensorSpec] = {}
        for name, (source, spec) in _foresee(self._config, stored).items():
            if source is None:
                self.specs[name] = spec
            else:
                self.copied[name] = source
            self.tensors[name] = spec
        _check_dtypes(self.tensors, stored if self.specs else {})
        self.recipe = sha256_hex(
            canonical([config_digest(self._config), version("mlx-lm"), version("mlx"), str(mx.default_device())])
        )
        self._pending: dict[str, mx.array] = {}

    @property
    def computed(self) -> frozenset[str]:
        """Names, after conversion, of the tensors that must be computed: their bytes are not in the checkpoint."""
        return frozenset(self.specs)

    def read(self, checkpoint: Checkpoint, names: Sequence[str]) -> Iterator[memoryview]:
        """Compute tensors one by one on demand; each one's bytes are valid until the next is requested.

        One tensor at a time is in memory, with its sources. Must be used by one thread only.

        Args:
            checkpoint: The checkpoint whose headers were given.
            names: Final names of computed tensors.

        Raises:
            WeightFileError: The checkpoint's files changed or cannot be read.
            UnsupportedModel: sanitize gives other tensors than it gave for the headers.
        """
        for name in names:
            if name not in self._pending:
                self._pending = self._load(checkpoint)
            array = mx.contiguous(self._pending.pop(name))
            if spec_of(array) != self.specs[name]:
                raise UnsupportedModel(
                    f"mlx-lm's sanitize produces another {name} from the tensors than from their headers.",
                    why=f"{array.dtype} {list(array.shape)} instead of {self.specs[name]}.",
                )
            try:
                mx.eval(array)
            except RuntimeError as error:
                raise _unreadable(checkpoint, str(error)) from error
            bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
            yield np.array(bits, copy=False).reshape(-1).view(np.uint8).data
            del array, bits
            mx.clear_cache()

    def _load(self, checkpoint: Checkpoint) -> dict[str, mx.array]:
        """The computed tensors, unevaluated: only headers are read."""
        # MLX keeps every file open whose tensors it may still read, and macOS allows a process 256 open files.
        allow_open_files(len(checkpoint.files) + _OTHER_FILES)
        weights: dict[str, mx.array] = {}
        for name, header in checkpoint.files.items():
            path = checkpoint.local_file(name, header)
            try:
                arrays = mx.load(str(path), format="safetensors")
            except RuntimeError as error:
                raise _unreadable(checkpoint, str(error)) from error
            assert isinstance(arrays, dict)
            weights.update(arrays)
        clean = sanitize(instantiate(self._config), weights)
        if missing := self.computed - clean.keys():
            raise UnsupportedModel(
                f"mlx-lm's sanitize does not produce {min(missing)} from the tensors, although it "
                "did from their headers."
            )
        return {name: clean[name] for name in self.specs}


class _Seen(Exception):
    """Ends a trace once its outputs are known: the steps between do not matter, and fp8 cannot be exported."""


def _foresee(config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> dict[str, tuple[str | None, TensorSpec]]:
    """For each final name, the checkpoint's tensor that is copied (None if computed) and the spec.

    Nodes of the trace tell copies from results. Python objects do not: `w *= 2` makes another array of the same object.
    """
    model = instantiate(config)
    names = list(stored)
    finals: list[str] = []
    nodes: dict[str, list[str]] = {}
    specs: list[TensorSpec] = []

    def clean(*arrays: mx.array) -> list[mx.array]:
        result = sanitize(model, dict(zip(names, arrays, strict=True)))
        finals.extend(result)
        specs.extend(spec_of(array) for array in result.values())
        return list(result.values())

    def listen(event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind in ("inputs", "outputs"):
            nodes[kind] = [node for node, *_ in event[kind]]
        if kind == "outputs":
            raise _Seen

    try:
        # While tracing, MLX refuses to evaluate, so reading values cannot go unnoticed.
        mx.export_function(listen, clean, *(placeholder(spec) for spec in stored.values()))
    except _Seen:
        pass
    except UnsupportedModel as error:
        if isinstance(error.__cause__, ValueError) and "function transformations" in str(error.__cause__):
            raise UnsupportedModel(
                f"mlx-lm converts a {config.get('model_type')} checkpoint according to its tensors' values.",
                why="A split is decided from headers alone.",
                hint="Split a checkpoint of an architecture that mlx-lm converts by names and shapes only.",
            ) from error
        raise
    sources = dict(zip(nodes["inputs"], names, strict=True))
    return {
        final: (source, spec if source is None else stored[source])
        for final, spec, source in zip(finals, specs, map(sources.get, nodes["outputs"]), strict=True)
    }


def _check_dtypes(needed: Mapping[str, TensorSpec], loaded: Mapping[str, TensorSpec]) -> None:
    for name, spec in (*needed.items(), *loaded.items()):
        if spec.dtype in _NOT_READ:
            raise UnsupportedModel(
                f"MLX cannot read tensors of dtype {spec.dtype}, such as {name}.",
                hint="Save the checkpoint in bfloat16 or float32, then split it.",
            )


def _unreadable(checkpoint: Checkpoint, why: str) -> WeightFileError:
    return WeightFileError(
        f"The tensors of {checkpoint.where} could not be computed.",
        why=f"{why[:1].upper()}{why[1:400]}.",
        hint="Wait until no process writes to the model, then start again.",
    )
