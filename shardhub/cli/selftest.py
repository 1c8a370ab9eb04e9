"""`shardhub selftest`: tests whether this machine computes chains correctly, and how fast."""

from __future__ import annotations

import json

from shardhub.cli.terminal import Terminal


def selftest(*, as_json: bool) -> int:
    """Test this machine and print the report; returns 3 if its numbers are wrong, 1 if something does not run."""
    from shardhub.selftest.report import run_selftest

    terminal = Terminal()
    try:
        report = run_selftest(doing=terminal.doing)
    finally:
        terminal.doing("")
    print(json.dumps(report.record()) if as_json else report.text())
    return report.exit_code
