"""Stand-ins for everything that does not cross a cut: any use of them is detected.

The stand-in for an array cannot be evaluated: it has a shape and a dtype, may be part of any lazy computation, and
whatever depends on it raises when it is evaluated, so that no function hides it (NaN passes through nan_to_num,
comparisons and argmax). The stand-in for a number is such an array without dimensions. Ghosts hold NaN instead, because
their arrays are evaluated with each step.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx

from shardhub.errors import ProofExceeded
from shardhub.manifest import Crossing
from shardhub.model.arrays import mlx_dtype
from shardhub.tensors import TensorSpec

# Part of mlx's message for an array that cannot be evaluated.
_NO_PRIMITIVE = "without a primitive"
_UNSEEN = "The proof did not cover this."
_UNDESCRIBED = "Its size or kind changes from step to step in a way that depends on neither L nor T."


class Foreign:
    """Stands in for something that no crossing can describe, and refuses any use."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        raise self._refusal()

    def _refusal(self) -> ProofExceeded:
        return _refused(f"{self._name} was used after a cut that it does not cross.", _UNDESCRIBED)


def _refuse(self: Foreign, *_: Any, **__: Any) -> Any:
    raise self._refusal()


# Operators are looked up in the class, bypassing __getattr__.
_OPERATORS = (
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul and rand or ror "
    "xor rxor lshift rlshift rshift rrshift neg pos abs invert lt le gt ge eq ne getitem setitem len iter contains "
    "bool int float index complex call array hash"
)
for _operator in _OPERATORS.split():
    setattr(Foreign, f"__{_operator}__", _refuse)


def refusal(error: BaseException | None) -> ProofExceeded | None:
    """The refusal that caused an error of mlx or of upstream's forward; None for other errors."""
    if isinstance(error, ProofExceeded):
        return error
    text = str(error)
    if isinstance(error, TypeError | ValueError) and f"{__name__}.{Foreign.__name__}" in text:
        return _refused("A value was used after a cut that it does not cross.", _UNDESCRIBED)
    if isinstance(error, RuntimeError | ValueError) and _NO_PRIMITIVE in text:
        return _refused("A value of another stage was used after a cut that it does not cross.")
    return None


@contextmanager
def watching() -> Iterator[None]:
    """Map errors of an evaluation that used what does not cross.

    Raises:
        ProofExceeded: The evaluation used a stand-in.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        if (refused := refusal(error)) is not None:
            raise refused from error
        raise


def nan(shape: tuple[int, ...]) -> mx.array:
    """An array of NaN that takes the memory of one element."""
    return mx.broadcast_to(mx.array(float("nan")), shape)


def parameter(spec: TensorSpec) -> mx.array:
    """The stand-in for a parameter of another stage."""
    return _array(spec.shape, mlx_dtype(spec.dtype))


def leaf(name: str, crossing: Crossing | None, *, batch: int, length: int, total: int) -> Any:
    """The stand-in for what a foreign layer passes on, if nothing came over the wire.

    Args:
        name: Its crossing name.
        crossing: Its description; None if no symbols describe it.
        batch, length, total: B, L and T of this step.
    """
    if crossing is None:
        return Foreign(name)
    if crossing.is_number:
        return _array((), mx.float32 if crossing.dtype == "F64" else mx.int64)
    return _array(crossing.expected_shape(batch=batch, length=length, total=total), mlx_dtype(crossing.dtype))


def _array(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return mx.broadcast_to(_source(dtype, threading.get_ident()), shape)


@cache
def _source(dtype: mx.Dtype, thread: int) -> mx.array:
    """An input of a traced function, kept beyond the trace: it has no value and nothing to compute it from."""
    kept: list[mx.array] = []

    def identity(array: mx.array) -> list[mx.array]:
        kept.append(array)
        return [array]

    mx.export_function(lambda event: None, identity, mx.zeros((), dtype))
    return kept[0]


def _refused(what: str, why: str = _UNSEEN) -> ProofExceeded:
    return ProofExceeded(
        what,
        why=why,
        hint="Split the model again with this version of shardhub, which checks more.",
    )
