"""Decode speed of one stream: chains of 1, 2, 3 stages against mlx_lm's stream_generate on the unsplit model.

All in one run, by turns: the same model, the same BLAS, one thread and one pinned core a process. Tokens are
compared too.

    python benchmarks/decode.py [--model FOLDER] [--tokens 48] [--rounds 3] [--stages 1,2,3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROMPT = "Tell me a long story about a river and the people who live beside it."
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_UNSPLIT = """
import json, sys, time
from mlx_lm import load, stream_generate
model, tokenizer = load(sys.argv[1])
ids = tokenizer.apply_chat_template([{"role": "user", "content": sys.argv[2]}], add_generation_prompt=True)
print("ready", flush=True)
for line in sys.stdin:
    times, tokens = [], []
    for response in stream_generate(model, tokenizer, ids, max_tokens=int(line)):
        times.append(time.perf_counter()); tokens.append(response.token)
    print(json.dumps({"tokens": tokens, "tokens_per_s": (len(times) - 1) / (times[-1] - times[0])}), flush=True)
"""

_CHAIN = """
import asyncio, json, sys, time
from pathlib import Path
from shardhub.chain.head import Head
from shardhub.chain.request import Request
from shardhub.parameters import SamplingParameters
from shardhub.shard import read_pipeline
async def main():
    head = await Head.start(read_pipeline(Path(sys.argv[1])), sys.argv[3:], context=2048, allow_local=False)
    ids = head.tokenizer.render_chat([{"role": "user", "content": sys.argv[2]}]).ids
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        request = Request(
            prompt=ids,
            parameters=SamplingParameters(),
            max_tokens=int(line),
            end_ids=head.tokenizer.eos_ids,
            reuse=False,
        )
        stream, times, tokens = head.scheduler.submit(request), [], []
        async for token in stream:
            times.append(time.perf_counter()); tokens.append(token.id)
        await stream.ended.wait()
        print(json.dumps({"tokens": tokens, "tokens_per_s": (len(times) - 1) / (times[-1] - times[0])}), flush=True)
    await head.stop()
asyncio.run(main())
"""


@contextmanager
def _pinned(core: int | None) -> Iterator[None]:
    """Keep this thread on one core, where the system lets a process choose."""
    if core is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Worker:
    """A process that answers each line on its stdin with a JSON line."""

    def __init__(self, command: list[str], *, core: int | None) -> None:
        with _pinned(core):  # what is started is pinned as this thread is
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **_ONE_THREAD, "SHARDHUB_BLAS": "reference"},
            )

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("a process of the benchmark ended early")
        return line

    def run(self, num_tokens: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{num_tokens}\n")
        self.process.stdin.flush()
        result: dict[str, Any] = json.loads(self.read())
        return result

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder; SmolLM2-135M-Instruct in float32 by default")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stages", default="1,2,3")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = options.model
    if model is None:
        from shardhub.demo.smollm2 import fetch_and_convert

        model = fetch_and_convert(None, dtype="float32", progress=lambda text: print(text, file=sys.stderr))
    counts = [int(count) for count in options.stages.split(",")]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            runs = {"unsplit": _start(workers, [sys.executable, "-c", _UNSPLIT, str(model), PROMPT], cores[0])}
            for count in counts:
                runs[f"{count} stages"] = _start_chain(workers, model, Path(folder) / str(count), count, cores)
            speeds: dict[str, list[float]] = {name: [] for name in runs}
            tokens: dict[str, list[int]] = {}
            for name, worker in runs.items():
                worker.run(4)  # warm
                del name
            for _ in range(options.rounds):
                for name, worker in runs.items():
                    result = worker.run(options.tokens)
                    speeds[name].append(result["tokens_per_s"])
                    tokens[name] = result["tokens"]
                    time.sleep(0.2)
        finally:
            for worker in reversed(workers):
                worker.stop()
    base = speeds["unsplit"]
    rows = []
    for name, values in speeds.items():
        ratios = [value / reference for value, reference in zip(values, base, strict=True)]
        rows.append(
            {
                "run": name,
                "tokens_per_s": round(statistics.median(values), 3),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_min": round(min(ratios), 3),
                "ratio_max": round(max(ratios), 3),
                "same_tokens": tokens[name] == tokens["unsplit"],
            }
        )
    if options.json:
        print(json.dumps({"model": model.name, "tokens": options.tokens, "rounds": options.rounds, "rows": rows}))
    else:
        print(f"{'run':<10} {'tokens/s':>9} {'ratio':>6} {'min':>6} {'max':>6}  same tokens")
        for row in rows:
            print(
                f"{row['run']:<10} {row['tokens_per_s']:>9.2f} {row['ratio']:>6.2f} {row['ratio_min']:>6.2f} "
                f"{row['ratio_max']:>6.2f}  {'yes' if row['same_tokens'] else 'NO'}"
            )


def _start(workers: list[Worker], command: list[str], core: int | None) -> Worker:
    worker = Worker(command, core=core)
    workers.append(worker)
    assert worker.read().strip() == "ready"
    return worker


def _start_chain(workers: list[Worker], model: Path, out: Path, count: int, cores: list[Any]) -> Worker:
    shardhub = [sys.executable, "-m", "shardhub"]
    subprocess.run(
        [*shardhub, "split", str(model), str(out), "--stages", str(count), "--name", "m", "--no-parity"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    addresses = []
    for index in range(count):
        node = Worker(
            [*shardhub, "serve", str(out / f"m-shard-{index}"), "--port", "0", "--json"],
            core=cores[index % len(cores)],
        )
        workers.append(node)
        addresses.append(json.loads(node.read())["address"])
    return _start(workers, [sys.executable, "-c", _CHAIN, str(out / "m-pipeline"), PROMPT, *addresses], None)


if __name__ == "__main__":
    main()
