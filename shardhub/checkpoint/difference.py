"""Comparing a tensor's bytes in two places, read by ranges side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shardhub.checkpoint.header import ByteSource, StoredTensor
from shardhub.tensors import TensorSpec

_READ_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A tensor that differs between the two places.

    Attributes:
        why: The two values that disagree.
    """

    name: str
    why: str


def find_difference(
    name: str,
    here: tuple[ByteSource, StoredTensor],
    there: tuple[ByteSource, StoredTensor],
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Difference | None:
    """Compare a tensor's dtype, shape and bytes; None if they are the same.

    Args:
        name: The tensor's name, for the result.
        here, there: The file and the tensor's place in it, on either side.
        progress: Called with the bytes compared since the last call.

    Raises:
        WeightFileError: A file is too short.
    """
    (first, own), (second, other) = here, there
    if own.spec != other.spec:
        return Difference(name=name, why=f"{_shown(own.spec)} here, {_shown(other.spec)} at the source")
    size = own.stop - own.start
    buffers = [memoryview(bytearray(min(size, _READ_BYTES))) for _ in range(2)]
    second.read_ahead(other.start, other.stop)
    for at in range(0, size, _READ_BYTES):
        count = min(_READ_BYTES, size - at)
        a, b = (buffer[:count] for buffer in buffers)
        first.read_into(own.start + at, a)
        second.read_into(other.start + at, b)
        if bytes(a) != bytes(b):
            byte = next(index for index in range(count) if a[index] != b[index])
            return Difference(name=name, why=f"byte {at + byte} of {size} is {a[byte]} here, {b[byte]} at the source")
        progress(count)
    return None


def _shown(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"
