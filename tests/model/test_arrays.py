"""Tensors as bytes: right whatever the layout, and valid after the array is gone."""

from __future__ import annotations

import gc

import mlx.core as mx
import numpy as np
import pytest

from shardhub.model.arrays import from_raw, to_raw


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16, mx.int32, mx.bool_, mx.complex64])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1, 5), (), (0, 3), (2, 0)])
def test_round_trip_of_any_dtype_and_shape(dtype, shape) -> None:
    """The elements come back, also those of a scalar and of an empty tensor."""
    array = mx.random.normal(shape).astype(dtype) if dtype != mx.complex64 else mx.ones(shape, dtype)
    raw = to_raw(array)
    assert raw.size_bytes == array.nbytes
    back = from_raw(raw)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert mx.array_equal(back, array)


def test_layouts_that_are_not_in_order_are_put_in_order() -> None:
    """Transposed, broadcast and sliced arrays are sent in row order."""
    base = mx.arange(24, dtype=mx.float32).reshape(4, 6)
    for array in (base.T, mx.broadcast_to(base[:1], (3, 6)), base[:, 1:5:2], base[::-1]):
        assert bytes(to_raw(array).data) == np.array(array).tobytes()


def test_a_view_outlives_its_array() -> None:
    """The bytes that a step sends stay unchanged, whatever is computed afterwards."""
    kept = [to_raw(mx.full((64, 64), float(value)) + 1) for value in range(20)]
    gc.collect()
    for _ in range(20):
        mx.eval(mx.random.normal((64, 64)) @ mx.random.normal((64, 64)))
    assert [np.frombuffer(raw.data, np.float32)[5] for raw in kept] == [value + 1 for value in range(20)]
