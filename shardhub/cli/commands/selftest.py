"""`shardhub selftest`: tests whether this machine computes chains correctly, and how fast."""

from __future__ import annotations

import json

from shardhub.blas import Blas
from shardhub.cli.flags import Output, flags
from shardhub.cli.options import BlasOption
from shardhub.cli.terminal import Terminal


@flags("Numbers")
class NumberFlags:
    """The BLAS to compute with."""

    blas: BlasOption = Blas.AUTO


def selftest(numbers: NumberFlags, output: Output) -> int:
    """Test this machine in a minute, without a network: kernels, tiny models in stages, speeds; prints a report.

    Exit code 3 where numbers are wrong, 1 where something does not run.
    """
    from shardhub.selftest.report import run_selftest

    terminal = Terminal()
    try:
        report = run_selftest(doing=terminal.doing)
    finally:
        terminal.doing("")
    print(json.dumps(report.record()) if output.as_json else report.text())
    return report.exit_code
