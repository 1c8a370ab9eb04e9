"""Measure a chain beside what a user would run instead, side by side in one run.

    python -m benchmarks.engine BENCHMARK [--rounds N] [--blas reference|openblas] [--quick] [--json]

Run from a checkout's root, on an idle machine. Nodes are `shardhub serve` processes, each pinned to a core (counted
round) with one BLAS thread; the head runs in the process of the benchmark, which is not pinned. Figures are medians
with their least and greatest, ratios are of runs by turns.
"""

from __future__ import annotations

import asyncio
import importlib
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.engine.options import parse
from benchmarks.engine.report import Report
from shardhub.blas import Blas, use_blas

BENCHMARKS = {
    "one-stream": "one stream on 1, 2, 4 stages against mlx_lm alone",
    "many-streams": "8 and 16 streams on 2 stages against 1 stage, mlx_lm's batches and mlx_lm.server",
    "first-token": "time to first token of 1,024 ids on 2 stages against mlx_lm alone; 900 of 1,000 ids shared",
    "ring": "one stream on 2 stages against mlx-lm's own pipeline over a ring, and against steps by the head",
    "hop": "what a hop costs beyond compute on loopback",
    "injected": "20 ms on each link: rate against 1 / (compute + links)",
    "drafts": "prompt-lookup drafting with 20 ms on each link, and how often tokens differ",
    "long-prefill": "a prompt of 2,000 ids that arrives while 4 streams decode",
    "long-session": "a session of 30,000 ids beside seven short ones within the KV budget",
    "shares": "two gateways' streams and a chat at once: what each head gets",
    "same-tokens": "tokens of runs side by side, drafted and forked against the runs alone",
}


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what runs for it ends with it
    use_blas(Blas.AUTO)  # this process makes and trains tiny models
    with tempfile.TemporaryDirectory(prefix="shardhub-benchmark-") as folder:
        name, as_json, options = parse(__doc__, BENCHMARKS, Path(folder))
        module = importlib.import_module(f"benchmarks.engine.{name.replace('-', '_')}")
        report = Report(f"{name}: {BENCHMARKS[name]}")
        try:
            asyncio.run(module.measure(options, report))
        except KeyboardInterrupt:
            sys.exit(130)
        report.print(as_json=as_json)


if __name__ == "__main__":
    main()
