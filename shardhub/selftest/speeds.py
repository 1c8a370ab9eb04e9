"""Speeds of this machine's device: reading weights, multiplying, starting a step, crossing a cut."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from shardhub.model.arrays import from_raw, to_raw

# Weights read for a step, in pieces of a layer's size: too large for the caches of any chip.
_READ_BYTES = 256 << 20
# Largest share of the machine's budget, so that a small machine is not filled.
_READ_SHARE = 0.05
_WIDTH = 2048
_GROUP_SIZE = 64
_PROMPT = 512
# Multiplications of a prompt evaluated at once on a fast device.
_MOST_PROMPTS = 64
# Hidden size of a large model.
_CROSSING_WIDTH = 8192
# Time for which each measurement is repeated, at least twice, after one warm-up run; the best run counts.
_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """The measured speeds.

    Attributes:
        read_gb_per_s: Bytes of 4-bit weights multiplied with one row, per second: this bounds a token's time.
        read_dense_gb_per_s: The same of weights that are not quantised.
        multiply_tflops: Rate of a prompt of 512 rows times dense weights.
        dtype: Dtype of the dense weights.
        step_ms: Time to evaluate an operation on one number: the least cost of a step.
        crossing_ms: Time to convert hidden states of 8192 values from the device to bytes and back.
    """

    read_gb_per_s: float
    read_dense_gb_per_s: float
    multiply_tflops: float
    dtype: str
    step_ms: float
    crossing_ms: float


def measure_speeds(budget_bytes: int) -> Speeds:
    """Measure the speeds within a twentieth of a budget; takes a few seconds."""
    is_gpu = mx.default_device().type == mx.DeviceType.gpu
    dtype = mx.bfloat16 if is_gpu else mx.float32
    try:
        return Speeds(
            read_gb_per_s=_read_gb_per_s(min(_READ_BYTES, int(budget_bytes * _READ_SHARE))),
            read_dense_gb_per_s=_read_dense_gb_per_s(min(_READ_BYTES, int(budget_bytes * _READ_SHARE)), dtype),
            multiply_tflops=_multiply_tflops(dtype),
            dtype=str(dtype).removeprefix("mlx.core."),
            step_ms=_best_s(lambda: mx.eval(mx.array(1.0) + 1.0)) * 1000,
            crossing_ms=_crossing_s() * 1000,
        )
    finally:
        mx.clear_cache()


def _read_gb_per_s(most_bytes: int) -> float:
    weight = mx.random.normal((_WIDTH, _WIDTH)).astype(mx.bfloat16)
    packed, scales, biases = mx.quantize(weight, group_size=_GROUP_SIZE, bits=4)
    row = mx.random.normal((1, _WIDTH)).astype(mx.bfloat16)
    layers = [(packed, scales, biases)]
    mx.eval(layers, row)
    layer_bytes = packed.nbytes + scales.nbytes + biases.nbytes

    def read() -> None:
        mx.eval(
            [mx.quantized_matmul(row, w, s, b, transpose=True, group_size=_GROUP_SIZE, bits=4) for w, s, b in layers]
        )

    for _ in range(1, _as_many(read, most=most_bytes // layer_bytes)):
        layers.append((packed + 0, scales + 0, biases + 0))
        mx.eval(layers[-1])
    return layer_bytes * len(layers) / _best_s(read) / 1e9


def _read_dense_gb_per_s(most_bytes: int, dtype: mx.Dtype) -> float:
    layers = [mx.random.normal((_WIDTH, _WIDTH)).astype(dtype)]
    row = mx.random.normal((1, _WIDTH)).astype(dtype)
    mx.eval(layers, row)

    def read() -> None:
        mx.eval([row @ weight.T for weight in layers])

    for _ in range(1, _as_many(read, most=most_bytes // layers[0].nbytes)):
        layers.append(layers[0] + 0)
        mx.eval(layers[-1])
    return sum(weight.nbytes for weight in layers) / _best_s(read) / 1e9


def _multiply_tflops(dtype: mx.Dtype) -> float:
    weight = mx.random.normal((_WIDTH, _WIDTH)).astype(dtype)
    prompts = [mx.random.normal((_PROMPT, _WIDTH)).astype(dtype)]
    mx.eval(weight, prompts)

    def multiply() -> None:
        mx.eval([rows @ weight.T for rows in prompts])

    prompts *= _as_many(multiply, most=_MOST_PROMPTS)
    return 2 * _PROMPT * _WIDTH * _WIDTH * len(prompts) / _best_s(multiply) / 1e12


def _as_many(run: Callable[[], None], *, most: int) -> int:
    """How many runs fit into half of the measuring time, at least one and at most `most`."""
    return max(1, min(most, int(_SECONDS / 2 / _best_s(run, seconds=0))))


def _crossing_s() -> float:
    hidden = mx.random.normal((1, 1, _CROSSING_WIDTH)).astype(mx.bfloat16)
    mx.eval(hidden)
    return _best_s(lambda: mx.eval(from_raw(to_raw(hidden + 0)) + 0))


def _best_s(run: Callable[[], None], *, seconds: float = _SECONDS) -> float:
    run()
    best, num_runs, until = float("inf"), 0, time.perf_counter() + seconds
    while num_runs < 2 or time.perf_counter() < until:
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
        num_runs += 1
    return best
