"""From config and headers to a proof of three stages, for large public models: time and memory, nothing downloaded.

Each model has a process of its own: upstream's model is built from its public configuration, lazily, its headers are
taken from it, and then what `shardhub plan` does is timed, and all that `shardhub split` shows before it copies a byte
(column `split`: probes, graphs of each stage alone and side by side, the twin). Importing MLX is not counted.

    python benchmarks/configs.py [NAME ...] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Of processor time: the work is on one thread, and other load does not count.
TARGET_S = 10.0
# Where a window, a block or another length passes 512 positions.
TARGET_LONG_S = 30.0
TARGET_BYTES = 10**9
TIMEOUT_S = 120
_COLUMNS = ("dissect", "prove", "both", "cpu", "split", "batched")
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def measure(name: str) -> dict[str, Any]:
    """Take one model apart and prove it in three stages, in this process."""
    sys.path.insert(0, str(ROOT))
    import mlx.core as mx

    from shardhub.errors import ShardhubError
    from shardhub.model.dissection import Dissection
    from tests import public

    config = public.config(name)
    headers = public.headers(config)
    result: dict[str, Any] = {
        "name": name,
        "size_bytes": sum(spec.size_bytes for spec in headers.values()),
    }
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        dissection = Dissection(config, headers)
        cuts = dissection.cuts()
        num_layers = len(cuts) + 1
        result |= {"layers": num_layers, "dissect_s": time.perf_counter() - start}
        ends = [0, num_layers // 3, 2 * num_layers // 3, num_layers]
        prove_start = time.process_time()
        dissection.prove(list(pairwise(ends)))
        result["prove_cpu_s"] = time.process_time() - prove_start
        result["prove_s"] = time.perf_counter() - start - result["dissect_s"]
        result["growing"] = sum(cut.grows for cut in cuts)
        result["refused"] = sum(cut.refusal is not None for cut in cuts)
    except ShardhubError as error:
        result["error"] = str(error)
    result["seconds"] = time.perf_counter() - start
    result["cpu_s"] = time.process_time() - cpu_start
    if "error" not in result:
        # All that `split` does: each stage by itself, side by side, and the twin.
        stages = dissection.stages(list(pairwise(ends)))
        result["batched"] = all(stage.batched_graph_hash is not None for stage in stages)
        result["chunks"] = dissection.probing.chunks
        result["twin"] = dissection.twin.line
        result["twin_differs"] = dissection.twin.finding is not None or bool(dissection.twin.not_run)
        result["split_cpu_s"] = time.process_time() - cpu_start - result.pop("prove_cpu_s")
    result["rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
    result["mlx_peak_bytes"] = mx.get_peak_memory()
    return result


def _measured(name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, name, "--here"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"name": name, "error": f"not done after {TIMEOUT_S} s"}
    if done.returncode:
        return {"name": name, "error": done.stderr.strip().rpartition("\n")[2]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']:<34}  {row['error'][:200]}"
    cuts = f"{row['layers'] - 1 - row['growing'] - row['refused']}/{row['layers'] - 1}"
    target_s = TARGET_S if max(row["chunks"]) <= 512 else TARGET_LONG_S
    missed = row["split_cpu_s"] > target_s or row["rss_bytes"] > TARGET_BYTES or row["twin_differs"]
    return (
        f"{row['name']:<34} {row['size_bytes'] / 1e9:8.1f} GB {cuts:>7} "
        f"{row['dissect_s']:6.2f} s {row['prove_s']:6.2f} s {row['seconds']:6.2f} s {row['cpu_s']:6.2f} s "
        f"{row['split_cpu_s']:6.2f} s {'yes' if row['batched'] else 'no':>8} "
        f"{row['rss_bytes'] / 1e9:6.2f} GB" + ("  over target" if missed else "")
    )


def main() -> int:
    """Measure each model in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="Models; all by default.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.names[0])))
        return 0
    names = arguments.names or sorted(path.stem for path in (ROOT / "tests" / "public_configs").glob("*.json"))
    if not arguments.json:
        print(f"mlx {version('mlx')}, mlx-lm {version('mlx-lm')}, {os.cpu_count()} cores")
        print(f"{'model':<34} {'weights':>11} {'cuts':>7}", *(f"{column:>8}" for column in _COLUMNS), f"{'RSS':>7}")
    rows = []
    for name in names:
        rows.append(_measured(name))
        if not arguments.json:
            print(_line(rows[-1]), flush=True)
    if arguments.json:
        print(json.dumps(rows))
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
