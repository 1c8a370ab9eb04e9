"""Which tests are slow: a list, written from a report of pytest, that the default leaves out.

    pytest -m "" -o junit_duration_report=call --junitxml=report.xml && python -m tests.slow report.xml

A file whose tests are all slow keeps the quickest of them in the default, unless that takes very long.
"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from tests.selection import HEAVY

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_suffix(".txt")
# Seconds from which a test is slow, on two idle cores; with them the default takes about six minutes there. From the
# second number on, the quickest of a file is slow too.
SLOW_S = 1.5
VERY_SLOW_S = 6.0


def choose(seconds: Mapping[str, float]) -> list[str]:
    """The node ids of slow tests, from the seconds that each test took by node id."""
    files: dict[str, list[str]] = defaultdict(list)
    for name in sorted(seconds, key=lambda name: (seconds[name], name)):
        files[name.partition("::")[0]].append(name)
    kept = {tests[0] for tests in files.values() if seconds[tests[0]] < VERY_SLOW_S}
    return sorted(name for tests in files.values() for name in tests if seconds[name] >= SLOW_S and name not in kept)


def read(report: Path) -> dict[str, float]:
    """Seconds by node id, from a JUnit report."""
    seconds: dict[str, float] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        parts = case.get("classname", "").split(".")
        lengths = range(len(parts), 0, -1)
        length = next((n for n in lengths if ROOT.joinpath(*parts[:n]).with_suffix(".py").is_file()), 0)
        if not length:  # what a run that was interrupted leaves
            continue
        name = "::".join(["/".join(parts[:length]) + ".py", *parts[length:], case.get("name", "")])
        seconds[name] = float(case.get("time", 0))
    return seconds


def candidates() -> set[str]:
    """Node ids of the tests that have no other mark for which the default leaves them out."""
    others = " or ".join(name for name in HEAVY if name != "slow")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", "-m", f"not ({others})"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {line for line in listed.splitlines() if "::" in line}


def main() -> None:
    """Write the list."""
    seconds = read(Path(sys.argv[1]))
    slow = choose({name: seconds[name] for name in candidates() & seconds.keys()})
    LIST.write_text("".join(f"{name}\n" for name in slow))
    print(f"{len(slow)} tests take at least {SLOW_S:g} s each")


if __name__ == "__main__":
    main()
