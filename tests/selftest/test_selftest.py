"""`shardhub selftest`: what it runs, its verdicts, and its report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from typer.testing import CliRunner

from shardhub.cli.app import app
from shardhub.engine.host import host_facts
from shardhub.model.stage import Stage
from shardhub.parity import numeric_class
from shardhub.selftest import kernels
from shardhub.selftest.chains import ChainResult, Form, run_family
from shardhub.selftest.families import FAMILIES, NUM_LAYERS
from shardhub.selftest.kernels import KernelResult, run_kernels
from shardhub.selftest.report import Report, run_selftest
from shardhub.selftest.speeds import Speeds
from tests.selection import variants

RIGHT = ChainResult(family="llama", form="float32", graph="0" * 12, num_tokens=8, tokens_equal=8)
SPEEDS = Speeds(
    read_gb_per_s=1.0, read_dense_gb_per_s=1.0, multiply_tflops=1.0, dtype="float32", step_ms=1.0, crossing_ms=1.0
)


def report(*chains: ChainResult, kernels: tuple[KernelResult, ...] = ()) -> Report:
    host = host_facts()
    return Report(host=host, numbers=numeric_class(host), kernels=kernels, chains=chains, speeds=SPEEDS, seconds=1.0)


@pytest.mark.parametrize("family", variants(list(FAMILIES), num_default=3))
def test_each_family_runs_exactly_on_this_device(family: str) -> None:
    """Three stages are proven and give the unsplit model's logits, and sequences run side by side."""
    result = run_family(family, FAMILIES[family], Form.DENSE)
    assert result.is_exact, result
    assert result.num_tokens > 0
    assert result.batch_refusal == ""
    assert result.graph


@pytest.mark.parametrize("family", variants(["llama", "gpt-oss", "falcon-h1"]))
def test_quantised_families_run_exactly(family: str) -> None:
    """With 4-bit weights, experts and state-space layers among them, logits equal the unsplit model's."""
    assert run_family(family, FAMILIES[family], Form.FOUR_BITS).is_exact


def test_ten_families_are_of_ten_architectures() -> None:
    """Ten models of ten architectures, each with the number of layers that the cuts assume."""
    assert len({config["model_type"] for config in FAMILIES.values()}) == len(FAMILIES) == 10
    assert {config["num_hidden_layers"] for config in FAMILIES.values()} == {NUM_LAYERS}


def test_chain_that_is_off_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that adds a little to its output is reported as inexact, though the unsplit model repeats itself."""
    run = Stage.run

    def off(self, ids, cache, incoming, *, position, need_logits=True):
        out = run(self, ids, cache, incoming, position=position, need_logits=need_logits)
        if isinstance(out, mx.array) and self.start > 0 and position >= 16:
            return out + 0.01 * mx.arange(out.shape[-1])
        return out

    monkeypatch.setattr(Stage, "run", off)
    result = run_family("llama", FAMILIES["llama"], Form.DENSE)
    assert not result.failure
    assert not result.is_exact
    assert result.max_abs_logit_difference > 0
    assert result.is_repeatable
    assert report(result).exit_code == 3


def test_model_that_mlx_cannot_run_is_reported_as_a_failure() -> None:
    """The result has upstream's error; the exit code is that of a failure, not of wrong numbers."""
    result = run_family("odd", {**FAMILIES["llama"], "model_type": "of-no-module"}, Form.DENSE)
    assert "of-no-module" in result.failure
    assert report(RIGHT, result).exit_code == 1


def test_kernels_are_right_on_this_device() -> None:
    """Each kernel is within rounding of float64 on this device, and a seed draws the same as elsewhere."""
    results = run_kernels()
    assert len(results) > 30
    assert [result for result in results if not result.is_right] == []


def test_wrong_kernel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that drops its last row, one that gives NaN and one that fails are each named."""
    monkeypatch.setattr(mx.fast, "rms_norm", lambda x, *_: mx.zeros_like(x))
    monkeypatch.setattr(mx, "softmax", lambda x, **_: x * float("nan"))
    monkeypatch.setattr(kernels, "_DRAWN", (1, 2, 3))

    def absent(*_: object) -> None:
        raise RuntimeError("[LayerNorm] not on this device")

    monkeypatch.setattr(mx.fast, "layer_norm", absent)
    wrong = {result.name: result for result in run_kernels() if not result.is_right}
    assert {name.rpartition(" ")[0] for name in wrong} == {"RMS norm", "softmax", "layer norm", "tokens drawn from a"}
    assert "not on this device" in wrong["layer norm float32"].failure
    assert report(RIGHT, kernels=tuple(wrong.values())).exit_code == 3


def test_report_is_to_be_pasted() -> None:
    """The report has backend, class, budget, each family and the verdict, in a code block, without the home folder."""
    wrong = replace(RIGHT, family="gemma3", tokens_equal=5, max_abs_logit_difference=0.25, is_repeatable=False)
    text = report(RIGHT, wrong, kernels=(KernelResult(name="rope"),)).text()
    lines = text.splitlines()
    assert (lines[0], lines[-1]) == ("```", "```")
    for word in ("backend", "memory", "class", "1 of 1 within rounding", "llama", "5 of 8 tokens equal", "run twice"):
        assert word in text
    assert "1 of 3 checks failed" in text
    assert str(Path.home()) not in text


def test_selftest_prints_one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--json` prints one document on stdout and progress on stderr, and exits with 0."""
    monkeypatch.setitem(run_selftest.__kwdefaults__, "families", ("llama",))
    monkeypatch.setitem(run_selftest.__kwdefaults__, "forms", (Form.DENSE,))
    result = CliRunner().invoke(app, ["selftest", "--json"])
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["ok"] is True
    assert [chain["family"] for chain in record["chains"]] == ["llama"]
    assert record["host"]["backend"] in {"cpu", "metal", "cuda"}
    assert all(record["speeds"][name] > 0 for name in record["speeds"].keys() - {"dtype"})
    assert "kernels" in result.stderr
