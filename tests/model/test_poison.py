"""An array that does not cross a cut cannot be used unnoticed, whatever is computed from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from shardhub.errors import ProofExceeded
from shardhub.manifest import Crossing
from shardhub.model import poison
from shardhub.tensors import TensorSpec

USES: dict[str, Callable[[mx.array], Any]] = {
    "sum": mx.sum,
    "nan_to_num": mx.nan_to_num,
    "comparison": lambda array: array > 0,
    "argmax": mx.argmax,
    "times nothing": lambda array: array * 0,
    "chosen by a mask": lambda array: mx.where(mx.array(False), array, mx.zeros_like(array)),
    "index": lambda array: mx.take(mx.arange(9), array.astype(mx.int32)),
    "integer": lambda array: array.astype(mx.int32),
    "written into another": lambda array: _written(array),
}


def _written(array: mx.array) -> mx.array:
    target = mx.zeros((4, *array.shape), array.dtype)
    target[1] = array
    return target[0]


@pytest.mark.parametrize("dtype", ["F32", "BF16", "I32", "U32", "BOOL"])
@pytest.mark.parametrize("use", list(USES))
def test_array_that_does_not_cross_is_refused_when_it_is_used(use: str, dtype: str) -> None:
    """Evaluating what depends on it raises our error, for every dtype and every operation that could hide a NaN."""
    array = poison.parameter(TensorSpec(dtype=dtype, shape=(2, 3)))
    result = USES[use](array)
    with pytest.raises(ProofExceeded, match="used after a cut"), poison.watching():
        mx.eval(result)


def test_array_that_is_not_used_costs_nothing() -> None:
    """A placeholder that nothing uses is never evaluated, however large the array that it replaces."""
    array = poison.parameter(TensorSpec(dtype="BF16", shape=(1 << 20, 1 << 20)))
    assert array.shape == (1 << 20, 1 << 20)
    assert array.dtype == mx.bfloat16
    with poison.watching():
        assert (mx.ones((2,)) + 1).tolist() == [2, 2]


@pytest.mark.parametrize(
    "use", [lambda x: mx.eval(x + 1), lambda x: bool(x < 2), bool, int, lambda x: [1, 2][x], lambda x: 5 in [x], range]
)
def test_number_that_does_not_cross_decides_nothing(use: Callable[[Any], Any]) -> None:
    """A number on the host may scale arrays that do not cross either; reading its value is refused."""
    number = poison.leaf("layer.3.2", Crossing(name="layer.3.2", dtype="I64", shape=()), batch=1, length=1, total=1)
    with pytest.raises(ProofExceeded), poison.watching():
        use(number)


@pytest.mark.parametrize(
    "use", [lambda x: x + 1, lambda x: x.sum(-1), lambda x: x.shape, bool, lambda x: mx.ones(2) * x]
)
def test_what_nothing_describes_refuses_everything(use: Callable[[Any], Any]) -> None:
    """A crossing without a description has no known shape, so that any use is refused."""
    with pytest.raises(ProofExceeded) as refused, poison.watching():
        use(poison.leaf("layer.3.2", None, batch=1, length=1, total=1))
    assert "depends on neither L nor T" in refused.value.why


def test_other_errors_stay_what_they_are() -> None:
    """Other errors pass unchanged."""
    with pytest.raises(ValueError, match="broadcast"), poison.watching():
        mx.eval(mx.ones((2,)) + mx.ones((3,)))
