"""What stands in the place of everything that does not cross a cut: nothing can be made of it without being seen.

A float is NaN, which goes on into whatever is computed of it, and what leaves a stage is checked for NaN. An integer
has no such value: its stand-in has a shape and a dtype, and refuses everything else.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from shardhub.errors import ProofExceeded
from shardhub.manifest import Crossing
from shardhub.model.arrays import mlx_dtype

NAN = float("nan")


class Foreign:
    """Stands in the place of integers that do not cross; reading their shape and dtype is all it allows."""

    __slots__ = ("_name", "dtype", "ndim", "shape", "size")

    def __init__(self, name: str, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
        self._name = name
        self.shape = shape
        self.dtype = dtype
        self.ndim = len(shape)
        self.size = 1
        for length in shape:
            self.size *= length

    def __getattr__(self, attribute: str) -> Any:
        raise self._refusal()

    def _refusal(self) -> ProofExceeded:
        return ProofExceeded(
            f"{self._name} was used behind a cut that it does not cross.",
            why="No proof has seen that.",
            hint="Split the model again with this version of shardhub, which looks further.",
        )


def _refuse(self: Foreign, *_: Any, **__: Any) -> Any:
    raise self._refusal()


# Operators are looked up in the class, past __getattr__.
_OPERATORS = (
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul and rand or ror "
    "xor rxor lshift rlshift rshift rrshift neg pos abs invert lt le gt ge eq ne getitem setitem len iter contains "
    "bool int float index complex call array hash"
)
for _operator in _OPERATORS.split():
    setattr(Foreign, f"__{_operator}__", _refuse)


def refusal(error: BaseException | None) -> ProofExceeded | None:
    """The refusal behind an error of upstream's forward: mlx's functions turn it into a TypeError of their own."""
    if isinstance(error, ProofExceeded):
        return error
    if isinstance(error, TypeError) and Foreign.__name__ in str(error):
        return ProofExceeded(
            "Integers were used behind a cut that they do not cross.",
            why="No proof has seen that.",
            hint="Split the model again with this version of shardhub, which looks further.",
        )
    return None


def array(shape: tuple[int, ...], dtype: mx.Dtype = mx.float32) -> mx.array:
    """NaN in every element; one element of memory."""
    return mx.broadcast_to(mx.array(NAN, dtype), shape)


def leaf(name: str, crossing: Crossing | None, *, batch: int, length: int, total: int) -> Any:
    """What a foreign layer is taken to hand on where nothing came over the wire.

    Args:
        name: Its crossing name.
        crossing: Its description; None where no symbols describe it.
        batch, length, total: B, L and T of this step.
    """
    if crossing is None:
        return array(())
    if crossing.is_number:
        return NAN if crossing.dtype == "F64" else Foreign(name, (), mx.int64)
    shape = crossing.expected_shape(batch=batch, length=length, total=total)
    dtype = mlx_dtype(crossing.dtype)
    return array(shape, dtype) if mx.issubdtype(dtype, mx.floating) else Foreign(name, shape, dtype)
