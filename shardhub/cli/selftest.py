"""`shardhub selftest`: does this machine compute chains rightly, and how fast?"""

from __future__ import annotations

import json

from shardhub.usecases.terminal import Status


def selftest(*, as_json: bool) -> int:
    """Try this machine and print the report; 3 where its numbers are wrong, 1 where something does not run."""
    from shardhub.selftest.report import run_selftest

    status = Status()
    try:
        report = run_selftest(doing=status)
    finally:
        status.clear()
    print(json.dumps(report.record()) if as_json else report.text())
    return report.exit_code
