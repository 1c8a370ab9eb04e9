"""mlx_lm on the whole model, in a process of its own: what a user with one machine would run.

    python -m benchmarks.engine.alone MODEL BLAS

A line of JSON comes for each line of JSON on stdin. Times are seconds since the request was read.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from shardhub.blas import Blas, use_blas


def main() -> None:
    use_blas(Blas(sys.argv[2]))
    import mlx_lm

    from shardhub.engine.host import host_facts

    model, tokenizer = mlx_lm.load(sys.argv[1])[:2]
    print(json.dumps(host_facts()), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        run = run_batch if request.pop("kind") == "batch" else run_stream
        print(json.dumps(run(model, tokenizer, **request)), flush=True)


def run_stream(model: Any, tokenizer: Any, *, prompt: list[int], max_tokens: int) -> dict[str, Any]:
    """One sequence, by `stream_generate`."""
    from mlx_lm import stream_generate

    started = time.perf_counter()
    times, tokens = [], []
    for response in stream_generate(model, tokenizer, prompt, max_tokens=max_tokens):
        times.append(time.perf_counter() - started)
        tokens.append(response.token)
    return {"tokens": tokens, "times": times}


def run_batch(model: Any, tokenizer: Any, *, prompts: list[list[int]], seconds: float) -> dict[str, Any]:
    """Sequences side by side, by `BatchGenerator`, until all have run for so long after the last one's first token."""
    from mlx_lm.generate import BatchGenerator

    del tokenizer
    started = time.perf_counter()
    generator = BatchGenerator(model, max_tokens=100_000, completion_batch_size=len(prompts))
    uids = generator.insert(prompts)
    by_uid: dict[int, tuple[list[int], list[float]]] = {uid: ([], []) for uid in uids}
    last_first: float | None = None
    while responses := generator.next_generated():
        now = time.perf_counter() - started
        for response in responses:
            by_uid[response.uid][0].append(response.token)
            by_uid[response.uid][1].append(now)
        if last_first is None and all(times for _, times in by_uid.values()):
            last_first = now
        if last_first is not None and now >= last_first + seconds:
            break
    generator.close()
    return {"tokens": [tokens for tokens, _ in by_uid.values()], "times": [times for _, times in by_uid.values()]}


if __name__ == "__main__":
    main()
