"""The self-test of a machine and its report: run everything, judge it, and present it as text or data."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shardhub.engine.host import host_facts
from shardhub.manifest import NumericClass
from shardhub.parity import describe_class, numeric_class
from shardhub.selftest.chains import ChainResult, Form, run_family
from shardhub.selftest.families import FAMILIES
from shardhub.selftest.kernels import KernelResult, run_kernels
from shardhub.selftest.speeds import Speeds, measure_speeds
from shardhub.sizes import size_text
from shardhub.toolchain import check_compiler

# Exit codes, the same as in every command: done, failure, integrity.
EXACT, FAILED, WRONG = 0, 1, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The results of a machine's self-test.

    Attributes:
        host: See `engine.host.host_facts`.
        numbers: The machine's numeric class: machines of the same class promise the same numbers.
        kernels: Each kernel, compared with float64.
        chains: Each form of each family, compared with the unsplit model.
        speeds: Speeds of the device.
        seconds: Time of the whole test.
    """

    host: Mapping[str, str]
    numbers: NumericClass
    kernels: Sequence[KernelResult]
    chains: Sequence[ChainResult]
    speeds: Speeds
    seconds: float

    @property
    def faults(self) -> list[str]:
        """A line for each fault."""
        lines = [
            f"{kernel.name}: "
            + (kernel.failure or f"off by {kernel.difference:.2g}, where rounding explains {kernel.tolerance:.2g}")
            for kernel in self.kernels
            if not kernel.is_right
        ]
        return lines + [f"{chain.family}, {chain.form}: {_fault(chain)}" for chain in self.chains if not chain.is_exact]

    @property
    def exit_code(self) -> int:
        """0 if all is right, 3 if numbers are wrong, 1 if something did not run but all numbers are right."""
        is_wrong = any(not kernel.is_right and not kernel.failure for kernel in self.kernels) or any(
            not chain.is_exact and not chain.failure for chain in self.chains
        )
        return WRONG if is_wrong else FAILED if self.faults else EXACT

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        if not self.faults:
            return "This machine computes chains exactly: every stage gave the unsplit model's numbers."
        what = "does not compute what it should" if self.exit_code == WRONG else "cannot run all of the checks"
        return f"This machine {what}: {len(self.faults)} of {len(self.kernels) + len(self.chains)} checks failed."

    def record(self) -> dict[str, Any]:
        """The report as JSON-able data."""
        return {
            "ok": not self.faults,
            "exit_code": self.exit_code,
            "verdict": self.verdict,
            "host": dict(self.host),
            "numeric_class": self.numbers.model_dump(),
            "kernels": [asdict(kernel) | {"is_right": kernel.is_right} for kernel in self.kernels],
            "chains": [asdict(chain) | {"is_exact": chain.is_exact} for chain in self.chains],
            "speeds": asdict(self.speeds),
            "seconds": round(self.seconds, 1),
        }

    def text(self) -> str:
        """The report as text to paste; it does not identify the machine or its owner."""
        host, speeds = self.host, self.speeds
        num_right = sum(kernel.is_right for kernel in self.kernels)
        lines = [
            f"shardhub {host['shardhub']}, mlx {host['mlx']}, mlx-lm {host['mlx_lm']}, python {host['python']}",
            f"{host['os']}, {platform.machine()}",
            "",
            f"backend   {host['backend']}",
            f"chip      {host['chip']}" + (f", {host['cpu']}" if host["cpu"] not in ("", host["chip"]) else ""),
            f"blas      {host['blas']}",
            f"memory    {_gb(host['budget_bytes'])} for a node, of {_gb(host['memory_bytes'])} installed",
            f"class     {describe_class(self.numbers)}",
            f"kernels   {num_right} of {len(self.kernels)} within rounding of float64",
            f"speeds    {speeds.read_gb_per_s:.3g} GB/s of 4-bit weights, "
            f"{speeds.read_dense_gb_per_s:.3g} GB/s of {speeds.dtype}, {speeds.multiply_tflops:.3g} TFLOP/s "
            f"{speeds.dtype}, {speeds.step_ms:.3g} ms a step at least, {speeds.crossing_ms:.3g} ms a cut",
            "",
            *_table(self.chains),
            "",
            *(f"- {fault}" for fault in self.faults),
            f"{self.verdict} {self.seconds:.0f} s.",
        ]
        return "\n".join(["```", *lines, "```"])


def run_selftest(
    *,
    families: Sequence[str] = tuple(FAMILIES),
    forms: Sequence[Form] = tuple(Form),
    doing: Callable[[str], None] = lambda _: None,
) -> Report:
    """Test this machine's kernels, chains of tiny models, and speeds; takes about a minute and needs no network.

    Args:
        families: Names in `FAMILIES`.
        forms: Forms in which each family is run.
        doing: Called with a description of the current activity.

    Raises:
        ShardhubError: The compiler that MLX's CPU backend calls is missing.
    """
    check_compiler()
    started = time.monotonic()
    doing("kernels")
    kernels = run_kernels()
    chains: list[ChainResult] = []
    for name in families:
        for form in forms:
            doing(f"families: {name}, {form.value} ({len(chains) + 1} of {len(families) * len(forms)})")
            chains.append(run_family(name, FAMILIES[name], form))
    doing("speeds")
    host = host_facts()
    speeds = measure_speeds(int(host["budget_bytes"]))
    return Report(
        host=host,
        numbers=numeric_class(host),
        kernels=kernels,
        chains=chains,
        speeds=speeds,
        seconds=time.monotonic() - started,
    )


def _table(chains: Sequence[ChainResult]) -> list[str]:
    lines = [
        f"{'family':<12} {'weights':<9} {'graph':<13} {'tokens':<9} {'max |difference|':<17} "
        f"{'side by side':<13} ms a token: unsplit, chain"
    ]
    for chain in chains:
        head = f"{chain.family:<12} {chain.form:<9} "
        if chain.failure:
            lines.append(f"{head}did not run")
            continue
        beside = "" if chain.form == Form.FOUR_BITS.value else "no" if chain.batch_refusal else "yes"
        tokens = f"{chain.tokens_equal} of {chain.num_tokens}"
        lines.append(
            f"{head}{chain.graph:<13} {tokens:<9} {chain.max_abs_logit_difference:<17.3g} {beside:<13} "
            f"{chain.whole_ms:.2f}, {chain.chain_ms:.2f}"
        )
    return lines


def _fault(chain: ChainResult) -> str:
    if chain.failure:
        return chain.failure
    line = (
        f"{chain.tokens_equal} of {chain.num_tokens} tokens equal, max |logit difference| "
        f"{chain.max_abs_logit_difference:.3g}"
    )
    return line if chain.is_repeatable else f"{line}; the unsplit model, run twice, differs from itself"


def _gb(size_bytes: str) -> str:
    return size_text(int(size_bytes))
