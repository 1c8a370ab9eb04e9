"""Tracing a computation without evaluating it: the hashes of its outputs, and the inputs they depend on.

`mx.export_function` with a callback reports each primitive with its arguments and each constant with its value, without
evaluating anything or needing weights. The Merkle hashes of two outputs are equal only if their computations are.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

from shardhub.errors import ShardhubError, UnsupportedModel
from shardhub.model import poison
from shardhub.model.build import RUN_WHOLE, first_line
from shardhub.model.hostvalues import Answer, Failures, catching

# Prefix of the names of inputs that are token ids.
IDS = "ids."
# Constants with more elements than this are distinguished by shape only; none was seen in the 126 model modules.
_MAX_CONSTANT_ELEMENTS = 1 << 20
# Marks for conversions to and from float8 in a traced computation, which mlx 0.32.4 cannot export.
_TO_FP8_MARK = 0xF8
_FROM_FP8_MARK = 0x8F
# Modes of quantisation with fp8 scales or weights, and the number of weights packed in an integer.
_FP8_MODES = {"nvfp4": 8, "mxfp8": 4}
# A trace patches mlx's module, so only one runs at a time.
_one_trace = threading.Lock()


class Graph:
    """A traced computation.

    Args:
        known: Hashes of inputs that are outputs of another graph, by name; other inputs are hashed by name.

    Attributes:
        outputs: Nodes of the function's outputs, in order.
    """

    def __init__(self, known: Mapping[str, bytes] | None = None) -> None:
        self.outputs: list[str] = []
        self._known = known or {}
        self._sources: dict[str, tuple[str, ...]] = {}
        self._hashes: dict[str, bytes] = {}
        # Hashes as if no input were known; stored separately only if they differ.
        self._named: dict[str, bytes] = {}
        self._inputs: dict[str, str] = {}

    def hash(self) -> str:
        """Hash of all outputs, with inputs hashed by name."""
        digest = hashlib.sha256()
        for output in self.outputs:
            digest.update(self._named.get(output) or self._hashes[output])
        return digest.hexdigest()

    def output_hashes(self) -> list[bytes]:
        """Hash of each output, with known inputs represented by their hashes."""
        return [self._hashes[output] for output in self.outputs]

    def reach(self, outputs: Iterable[int]) -> set[str]:
        """Names of the inputs that the outputs with these indices depend on."""
        pending = [self.outputs[index] for index in outputs]
        seen = set(pending)
        names = set()
        while pending:
            node = pending.pop()
            if node in self._inputs:
                names.add(self._inputs[node])
            for source in self._sources.get(node, ()):
                if source not in seen:
                    seen.add(source)
                    pending.append(source)
        return names

    def add(self, event: Mapping[str, Any], names: Sequence[str]) -> None:
        """Add one event of the export callback."""
        kind = event["type"]
        if kind == "inputs":
            for (node, _, _), name in zip(event["inputs"], names, strict=True):
                self._inputs[node] = name
                named = _digest("input", name)
                self._hashes[node] = self._known.get(name) or named
                if name in self._known:
                    self._named[node] = named
        elif kind == "constants":
            for node, array in event["constants"]:
                self._hashes[node] = _constant(array)
        elif kind == "primitive":
            sources = tuple(source for source, *_ in event["inputs"])
            operation = repr((event["name"], event["arguments"]))
            outputs = [(node, (tuple(shape), str(dtype))) for node, shape, dtype in event["outputs"]]
            base = _digest(operation, [self._hashes[source] for source in sources])
            for index, (node, form) in enumerate(outputs):
                self._hashes[node] = _digest(base, index, form)
                self._sources[node] = sources
            if any(source in self._named for source in sources):
                base = _digest(operation, [self._named.get(source) or self._hashes[source] for source in sources])
                for index, (node, form) in enumerate(outputs):
                    self._named[node] = _digest(base, index, form)
        elif kind == "outputs":
            self.outputs = [node for node, *_ in event["outputs"]]


class Questions:
    """Reads of values on the host by a traced forward: the arrays whose elements it read, in order.

    Some forwards choose experts on the host. A trace has no elements, so each read returns zeros, which are always
    valid indices, and its array becomes an output of the graph: two traces with the same hash read the same arrays and
    continue alike.
    """

    def __init__(self) -> None:
        self.asked: list[mx.array] = []
        self.failures = Failures()

    def __len__(self) -> int:
        return len(self.asked)

    def answer(self, array: mx.array) -> Any:
        """The elements as nested lists; for integer arrays, zeros."""
        self.asked.append(array)
        answers = np.empty(array.shape, object)
        answers.fill(Answer(self.failures))
        return answers.tolist()


def trace(
    function: Callable[..., Sequence[mx.array]],
    inputs: Mapping[str, mx.array],
    known: Mapping[str, bytes] | None = None,
) -> Graph:
    """Trace `function(inputs, questions)` without evaluating anything; questions follow its own outputs.

    Raises:
        UnsupportedModel: The forward evaluates on the host, or uses a primitive that cannot be exported.
    """
    graph = Graph(known)
    names = list(inputs)

    def positional(*arrays: mx.array) -> Sequence[mx.array]:
        questions.asked.clear()
        with catching(questions.failures):
            outputs = function(dict(zip(names, arrays, strict=True)), questions)
        return [*outputs, *questions.asked]

    with _exportable() as questions:
        try:
            mx.export_function(lambda event: graph.add(event, names), positional, *inputs.values())
        except ShardhubError:
            raise
        except Exception as error:  # upstream's forwards may raise anything
            if (used := poison.refusal(error)) is not None:
                raise used from error
            raise UnsupportedModel(
                "The model's computation cannot be traced, so a split of it cannot be proven.",
                why=f"mlx-lm's code stopped: {first_line(error)}.",
            ) from error
    questions.failures.check()
    for index in range(len(graph.outputs) - len(questions), len(graph.outputs)):
        if (names_of := graph.reach([index])) and all(name.startswith(IDS) for name in names_of):
            raise UnsupportedModel(
                "The model's forward reads token ids on the host.",
                why="What it does with other ids cannot be traced, so a split cannot be proven.",
                hint=RUN_WHOLE,
            )
    return graph


@contextmanager
def unevaluated() -> Iterator[None]:
    """Answer a forward's reads on the host as in a trace, so that a lazy run evaluates nothing."""
    questions, original, here = Questions(), mx.array.tolist, threading.get_ident()

    def tolist(array: mx.array) -> Any:
        if threading.get_ident() != here or not mx.issubdtype(array.dtype, mx.integer):
            return original(array)
        return questions.answer(array)

    with _one_trace:
        mx.array.tolist = tolist  # type: ignore[method-assign,assignment]
        try:
            yield
            questions.failures.check()
        finally:
            mx.array.tolist = original  # type: ignore[method-assign]


@contextmanager
def _exportable() -> Iterator[Questions]:
    """Replace functions that a trace cannot handle by stand-ins that it can.

    - `contiguous` changes no value and is left out.
    - `to_fp8` and `from_fp8` become marks on their argument: they depend on it alone, so equal marks mean equal values.
    - `dequantize` does too if it reads fp8 internally: elements of packed weights times marks of their scales.
    - `tolist` of an integer array without elements becomes a read on the host.
    """
    questions = Questions()
    tracing = threading.get_ident()
    originals = mx.contiguous, mx.to_fp8, mx.from_fp8, mx.array.tolist, mx.dequantize

    def here(stand_in: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
        """Use the stand-in in this thread, and the original in all others, which may run a real forward meanwhile."""

        def choose(*args: Any, **kwargs: Any) -> Any:
            return (stand_in if threading.get_ident() == tracing else original)(*args, **kwargs)

        return choose

    def to_fp8(array: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        return mx.bitwise_xor(array.astype(mx.uint8), mx.array(_TO_FP8_MARK, mx.uint8))

    def from_fp8(array: mx.array, dtype: mx.Dtype = mx.bfloat16, *args: Any, **kwargs: Any) -> mx.array:
        return mx.bitwise_xor(array, mx.array(_FROM_FP8_MARK, mx.uint8)).astype(dtype)

    def dequantize(weight: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        if (mode := kwargs.get("mode")) not in _FP8_MODES:
            return originals[4](weight, *args, **kwargs)
        scales = args[0] if args else kwargs["scales"]
        elements = mx.repeat(weight, _FP8_MODES[mode], axis=-1)
        groups = mx.repeat(from_fp8(scales, mx.float32), elements.shape[-1] // scales.shape[-1], axis=-1)
        result = elements * groups
        if (global_scale := kwargs.get("global_scale")) is not None:
            result = result * global_scale
        return result.astype(kwargs.get("dtype") or mx.bfloat16)

    def tolist(array: mx.array) -> Any:
        try:
            return originals[3](array)
        except ValueError:
            if not mx.issubdtype(array.dtype, mx.integer):
                raise
            return questions.answer(array)

    with _one_trace:
        mx.contiguous = here(lambda array, *args, **kwargs: array, originals[0])
        mx.to_fp8, mx.from_fp8 = here(to_fp8, originals[1]), here(from_fp8, originals[2])
        mx.dequantize = here(dequantize, originals[4])
        mx.array.tolist = here(tolist, originals[3])  # type: ignore[method-assign]
        try:
            yield questions
        finally:
            mx.contiguous, mx.to_fp8, mx.from_fp8 = originals[:3]
            mx.dequantize = originals[4]
            mx.array.tolist = originals[3]  # type: ignore[method-assign]


def _digest(*parts: Any) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=20).digest()


def _constant(array: mx.array) -> bytes:
    if array.size > _MAX_CONSTANT_ELEMENTS:
        return _digest("large constant", tuple(array.shape), str(array.dtype))
    view = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return _digest("constant", tuple(array.shape), str(array.dtype), np.array(view).tobytes())
