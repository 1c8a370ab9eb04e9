"""`shardhub doctor`: checks whether this machine is ready to split, serve and publish."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.blas import Blas
from shardhub.cli.flags import Output, flags
from shardhub.cli.options import BlasChoice, CacheDir
from shardhub.cli.setting_names import with_flags

if TYPE_CHECKING:
    from shardhub.usecases.doctor import Check


@flags("Checks")
class DoctorFlags:
    """What is checked, and how it is reported."""

    report: Annotated[bool, typer.Option("--report", help="Print a text to paste into an issue.")] = False
    cache_dir: CacheDir = None
    blas: BlasChoice = Blas.AUTO


def doctor(checking: DoctorFlags, output: Output) -> int:
    """Check whether this machine is ready to split, serve and publish; exit code 1 if it is not."""
    from shardhub.usecases.doctor import FAIL, checks_of, report_text
    from shardhub.usecases.versions import versions

    checks: list[Check] = []
    for check in checks_of(checking.cache_dir, checking.blas):
        results = check()
        checks += results
        if not checking.report and not output.as_json:
            _print(results)
    failed = any(check.state == FAIL for check in checks)
    if output.as_json:
        record = {"ok": not failed, "checks": [_record(check) for check in checks], "versions": versions().splitlines()}
        print(json.dumps(record))
    elif checking.report:
        print(with_flags(report_text(checks)))
    return int(failed)


def _record(check: Check) -> dict[str, str]:
    return {"name": check.name, "state": check.state, "found": check.finding, "advice": check.advice}


def _print(checks: list[Check]) -> None:
    for check in checks:
        print(f"{check.state:<5} {check.name:<9} {with_flags(check.finding)}", flush=True)
        if check.advice:
            print(f"      {'':<9} -> {with_flags(check.advice)}", flush=True)
