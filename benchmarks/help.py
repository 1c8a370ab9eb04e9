"""CPU time of `shardhub --help`, and of importing the library: the least of some runs, as nothing makes one shorter.

    python benchmarks/help.py [--runs 10] [--json]

Exit code 1 if `--help` takes more than a person notices. A machine that is busy may pass that in every run.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys

# What the command line may take before it says something.
MOST_S = 0.250
_MEASURED = {
    "python": ("-c", "pass"),
    "import shardhub": ("-c", "import shardhub"),
    "shardhub --help": ("-m", "shardhub", "--help"),
}


def cpu_s(arguments: tuple[str, ...]) -> float:
    """CPU time of `python ARGUMENTS`, the interpreter's start counted."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Measure, and say whether help is quick enough."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10, help="Runs of each.")
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")
    options = parser.parse_args()
    least_s = {name: min(cpu_s(arguments) for _ in range(options.runs)) for name, arguments in _MEASURED.items()}
    if options.json:
        print(json.dumps({"cpu_s": least_s, "most_s": MOST_S}))
    else:
        for name, seconds in least_s.items():
            print(f"{name:<16} {seconds * 1000:4.0f} ms")
    return int(least_s["shardhub --help"] > MOST_S)


if __name__ == "__main__":
    sys.exit(main())
