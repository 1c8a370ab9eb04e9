"""The kernels that today's models use, on this machine's device, compared with float64 in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from shardhub.model.sampling import draw_key, sample
from shardhub.parameters import SamplingParameters

Array = NDArray[np.float64]

# Largest difference that rounding causes, as a share of the largest value. CUDA may multiply float32 in pieces that
# keep 10 bits (TF32); the CPU backend sums a quantised row in bfloat16, and is off by 0.04. A wrong kernel is off by
# about 1.
_TOLERANCES: Mapping[mx.Dtype, float] = {mx.float32: 2e-3, mx.float16: 2e-2, mx.bfloat16: 0.1}
# Tokens that a seed draws from flat logits at positions from 0 on, on every machine: the answer is the same whichever
# node draws, and whichever draws again after that one was lost.
_SEED = 20261127
_VOCAB_SIZE = 1000
_DRAWN = (535, 983, 764, 525, 578, 618, 62, 72)
_GROUP_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelResult:
    """The result of a kernel.

    Attributes:
        name: The kernel and its inputs.
        difference: Largest difference from the reference, as a share of the reference's largest value.
        tolerance: Largest difference that counts as rounding.
        failure: Why it did not run; empty if it did.
    """

    name: str
    difference: float = 0.0
    tolerance: float = 0.0
    failure: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it ran and its values equal the reference's up to rounding."""
        return not self.failure and self.difference <= self.tolerance


def run_kernels() -> list[KernelResult]:
    """Run each kernel once; errors are part of its result."""
    results = []
    for name, (dtype, kernel) in _kernels().items():
        try:
            actual, expected = kernel()
            mx.eval(actual)
            values = np.array(actual.astype(mx.float32)).astype(np.float64)
            results.append(
                KernelResult(name=name, difference=_difference(values, expected), tolerance=_TOLERANCES[dtype])
            )
        except Exception as error:  # noqa: BLE001 - a device that lacks a kernel may raise anything
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            results.append(KernelResult(name=name, failure=reason))
    results.append(_draws())
    return results


_Kernel = Callable[[], tuple[mx.array, Array]]


def _kernels() -> dict[str, tuple[mx.Dtype, _Kernel]]:
    """The kernels by name: the dtype, which sets the tolerance, and a function that returns values and reference."""
    kernels: dict[str, tuple[mx.Dtype, _Kernel]] = {}
    is_gpu = mx.default_device().type == mx.DeviceType.gpu
    dtypes = (mx.float32, mx.float16, mx.bfloat16) if is_gpu else (mx.float32, mx.bfloat16)
    for dtype in dtypes:
        short = str(dtype).removeprefix("mlx.core.")

        def add(name: str, kernel: Callable[[mx.Dtype], tuple[mx.array, Array]], dtype: mx.Dtype = dtype) -> None:
            kernels[f"{name} {short}"] = (dtype, lambda: kernel(dtype))  # noqa: B023 - called in this turn

        add("matmul, many rows", lambda d: _matmul(d, rows=65))
        add("matmul, one row", lambda d: _matmul(d, rows=1))
        for bits in (4, 8):
            add(f"{bits}-bit matmul, many rows", lambda d, bits=bits: _quantized_matmul(d, rows=65, bits=bits))  # type: ignore[misc]
            add(f"{bits}-bit matmul, one row", lambda d, bits=bits: _quantized_matmul(d, rows=1, bits=bits))  # type: ignore[misc]
        add("4-bit experts", _quantized_experts)
        add("RMS norm", _rms_norm)
        add("layer norm", _layer_norm)
        add("rope", _rope)
        for head_dim in (64, 128):
            add(f"attention, heads of {head_dim}, a prompt", lambda d, n=head_dim: _attention(d, head_dim=n, length=33))  # type: ignore[misc]
            add(f"attention, heads of {head_dim}, a step", lambda d, n=head_dim: _attention(d, head_dim=n, length=1))  # type: ignore[misc]
        add("softmax", _softmax)
        add("convolution by channel", _convolution)
    return kernels


def _draws() -> KernelResult:
    """Check that a seed draws the same tokens as on every other machine."""
    name = "tokens drawn from a seed"
    logits, parameters = mx.zeros((_VOCAB_SIZE,)), SamplingParameters(temperature=1.0)
    try:
        tokens = [sample(logits, (), parameters, None, draw_key(_SEED, 0, at))[0] for at in range(len(_DRAWN))]
        drawn = tuple(token.item() for token in tokens)
    except Exception as error:  # noqa: BLE001 - as above
        return KernelResult(name=name, failure=f"{type(error).__name__}: {str(error)[:200]}")
    return KernelResult(name=name, difference=0.0 if drawn == _DRAWN else 1.0)


def _difference(values: Array, expected: Array) -> float:
    if values.shape != expected.shape or not np.isfinite(values).all():
        return float("inf")
    return float(np.abs(values - expected).max() / max(np.abs(expected).max(), 1e-6))


def _made(dtype: mx.Dtype, *shape: int, seed: int) -> tuple[mx.array, Array]:
    """Make random values, rounded to the kernel's dtype, and the same values in float64."""
    array = mx.array(np.random.default_rng(seed).standard_normal(shape, np.float32)).astype(dtype)
    return array, np.array(array.astype(mx.float32)).astype(np.float64)


def _matmul(dtype: mx.Dtype, *, rows: int) -> tuple[mx.array, Array]:
    (a, a64), (b, b64) = _made(dtype, rows, 256, seed=1), _made(dtype, 192, 256, seed=2)
    return a @ b.T, a64 @ b64.T


def _quantized_matmul(dtype: mx.Dtype, *, rows: int, bits: int) -> tuple[mx.array, Array]:
    (x, x64), (w, _) = _made(dtype, rows, 256, seed=3), _made(dtype, 192, 256, seed=4)
    packed, scales, biases = mx.quantize(w, group_size=_GROUP_SIZE, bits=bits)
    product = mx.quantized_matmul(x, packed, scales, biases, transpose=True, group_size=_GROUP_SIZE, bits=bits)
    return product, x64 @ _unpacked(packed, scales, biases, bits=bits).T


def _quantized_experts(dtype: mx.Dtype) -> tuple[mx.array, Array]:
    (x, x64), (w, _) = _made(dtype, 5, 1, 256, seed=5), _made(dtype, 4, 128, 256, seed=6)
    packed, scales, biases = mx.quantize(w, group_size=_GROUP_SIZE, bits=4)
    chosen = mx.array([2, 0, 3, 3, 1], mx.uint32)
    product = mx.gather_qmm(
        x, packed, scales, biases, rhs_indices=chosen, transpose=True, group_size=_GROUP_SIZE, bits=4
    )
    experts = _unpacked(packed, scales, biases, bits=4)[np.array(chosen)]
    return product, np.einsum("bld,bod->blo", x64, experts)


def _unpacked(packed: mx.array, scales: mx.array, biases: mx.array, *, bits: int) -> Array:
    """Dequantise weights in float64 without a kernel: 32 / bits values per word, the first in the lowest bits."""
    words = np.array(packed)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    values = (words[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    groups = values.reshape(*words.shape[:-1], -1, _GROUP_SIZE).astype(np.float64)
    scale, bias = (np.array(part.astype(mx.float32)).astype(np.float64)[..., None] for part in (scales, biases))
    return np.asarray((groups * scale + bias).reshape(*words.shape[:-1], -1))


def _rms_norm(dtype: mx.Dtype) -> tuple[mx.array, Array]:
    (x, x64), (w, w64) = _made(dtype, 7, 256, seed=7), _made(dtype, 256, seed=8)
    return mx.fast.rms_norm(x, w, 1e-5), x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-5) * w64


def _layer_norm(dtype: mx.Dtype) -> tuple[mx.array, Array]:
    (x, x64), (w, w64), (b, b64) = (
        _made(dtype, 7, 256, seed=9),
        _made(dtype, 256, seed=10),
        _made(dtype, 256, seed=11),
    )
    centred = x64 - x64.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w64 + b64
    return mx.fast.layer_norm(x, w, b, 1e-5), expected


def _rope(dtype: mx.Dtype) -> tuple[mx.array, Array]:
    x, x64 = _made(dtype, 1, 2, 9, 64, seed=12)
    position = 100
    angles = (np.arange(9)[:, None] + position) * 10000.0 ** (-np.arange(32) / 32)
    first, second = x64[..., :32], x64[..., 32:]
    expected = np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), first * np.sin(angles) + second * np.cos(angles)], axis=-1
    )
    return mx.fast.rope(x, 64, traditional=False, base=10000.0, scale=1.0, offset=position), expected


def _attention(dtype: mx.Dtype, *, head_dim: int, length: int) -> tuple[mx.array, Array]:
    """Attention with two query heads per key head, over 100 earlier positions."""
    before = 100
    q, q64 = _made(dtype, 1, 4, length, head_dim, seed=13)
    k, k64 = _made(dtype, 1, 2, before + length, head_dim, seed=14)
    v, v64 = _made(dtype, 1, 2, before + length, head_dim, seed=15)
    attended = mx.fast.scaled_dot_product_attention(
        q, k, v, scale=head_dim**-0.5, mask="causal" if length > 1 else None
    )
    k64, v64 = np.repeat(k64, 2, axis=1), np.repeat(v64, 2, axis=1)
    scores = q64 @ k64.swapaxes(-1, -2) * head_dim**-0.5
    is_future = np.arange(before + length)[None, :] > np.arange(before, before + length)[:, None]
    return attended, _softmaxed(np.where(is_future, -np.inf, scores)) @ v64


def _softmaxed(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def _softmax(dtype: mx.Dtype) -> tuple[mx.array, Array]:
    x, x64 = _made(dtype, 5, 1000, seed=16)
    return mx.softmax(x, axis=-1, precise=True), _softmaxed(x64)


def _convolution(dtype: mx.Dtype) -> tuple[mx.array, Array]:
    """Convolution with one filter of 4 positions for each of 128 channels, as in state-space layers."""
    (x, x64), (w, w64) = _made(dtype, 1, 20, 128, seed=17), _made(dtype, 128, 4, 1, seed=18)
    expected = sum(x64[:, at : at + 17, :] * w64[:, at, 0] for at in range(4))
    return mx.conv1d(x, w, groups=128), np.asarray(expected)
