"""Descriptions of tensors outside MLX: dtype, shape and raw bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Bytes per element of the dtypes MLX can hold, by their safetensors names.
# Source: the safetensors format, https://github.com/huggingface/safetensors (README, "Format").
DTYPE_SIZES: dict[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Dtype and shape of a tensor.

    Attributes:
        dtype: A key of `DTYPE_SIZES`.
        shape: Dimensions; `()` is a scalar.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return DTYPE_SIZES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTensor:
    """A tensor on the wire: its spec, and its elements as contiguous little-endian bytes or a view of them."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    @property
    def size_bytes(self) -> int:
        return len(self.data)
