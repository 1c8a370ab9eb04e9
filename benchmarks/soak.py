"""Random traffic and faults for as long as you like; a seed makes the same requests and faults again.

    python benchmarks/soak.py --minutes 60 --seed 1

Ends with 1 if an invariant did not hold, and says which.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.soak.nemesis import Cluster, small_pipeline, soak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(small_pipeline(Path(folder)))
        try:
            report = asyncio.run(soak(cluster, seed=options.seed, seconds=60 * options.minutes))
        finally:
            cluster.stop()
    print(report.line())
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
