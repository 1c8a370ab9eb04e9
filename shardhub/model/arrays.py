"""Conversions between MLX arrays and tensors on the wire: dtypes, placeholders, raw bytes."""

from __future__ import annotations

import sys

import mlx.core as mx
import numpy as np

from shardhub.errors import WireError
from shardhub.tensors import DTYPE_SIZES, RawTensor, TensorSpec

if sys.byteorder != "little":  # pragma: no cover - MLX has no big-endian wheel
    raise ImportError("shardhub needs a little-endian machine")

# MLX reads 8-bit floats as bytes: the quantised matmul interprets them, not the array's dtype.
_TO_MLX: dict[str, mx.Dtype] = {
    "BOOL": mx.bool_,
    "U8": mx.uint8,
    "I8": mx.int8,
    "F8_E4M3": mx.uint8,
    "F8_E5M2": mx.uint8,
    "F8_E8M0": mx.uint8,
    "U16": mx.uint16,
    "I16": mx.int16,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "U32": mx.uint32,
    "I32": mx.int32,
    "F32": mx.float32,
    "U64": mx.uint64,
    "I64": mx.int64,
    "F64": mx.float64,
    "C64": mx.complex64,
}
_TO_NAME: dict[mx.Dtype, str] = {dtype: name for name, dtype in reversed(_TO_MLX.items())}
_TO_NAME[mx.uint8] = "U8"
_TO_NUMPY: dict[str, type] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
    "F8_E8M0": np.uint8,
    "U16": np.uint16,
    "I16": np.int16,
    "F16": np.float16,
    "BF16": np.uint16,  # numpy has no bfloat16
    "U32": np.uint32,
    "I32": np.int32,
    "F32": np.float32,
    "U64": np.uint64,
    "I64": np.int64,
    "F64": np.float64,
    "C64": np.complex64,
}


def dtype_name(dtype: mx.Dtype) -> str:
    """safetensors dtype name of an MLX dtype."""
    return _TO_NAME[dtype]


def mlx_dtype(name: str) -> mx.Dtype:
    """MLX dtype of a safetensors dtype name."""
    return _TO_MLX[name]


def is_float(array: mx.array) -> bool:
    """Whether the array's elements can be NaN."""
    return bool(mx.issubdtype(array.dtype, mx.floating))


def placeholder(spec: TensorSpec) -> mx.array:
    """An array of this dtype and shape that takes the memory of one element."""
    return mx.broadcast_to(mx.array(0, _TO_MLX[spec.dtype]), spec.shape)


def to_raw(array: mx.array) -> RawTensor:
    """An array's elements; evaluates it. Contiguous data are not copied: the view keeps the array alive."""
    name = dtype_name(array.dtype)
    view = array.view(mx.uint16) if name == "BF16" else array
    elements = np.ascontiguousarray(np.array(view, copy=False)).reshape(-1).view(np.uint8)
    return RawTensor(dtype=name, shape=tuple(array.shape), data=elements.data)


def from_raw(raw: RawTensor) -> mx.array:
    """An array with these elements; copies the data once.

    Raises:
        WireError: The number of bytes does not match dtype and shape.
    """
    expected = DTYPE_SIZES[raw.dtype] * int(np.prod(raw.shape, dtype=np.int64))
    if len(raw.data) != expected:
        raise WireError(f"A tensor {raw.dtype}{list(raw.shape)} has {len(raw.data)} bytes instead of {expected}.")
    array = mx.array(np.frombuffer(raw.data, dtype=_TO_NUMPY[raw.dtype]).reshape(raw.shape))
    return array.view(mx.bfloat16) if raw.dtype == "BF16" else array
