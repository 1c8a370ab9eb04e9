"""mlx-lm's own pipeline over MLX's ring, one process a stage; `mlx.launch` starts it.

    mlx.launch -n 2 --backend ring benchmarks/engine/ring_worker.py MODEL REQUEST

REQUEST is a file with `prompt` and `max_tokens`; the first process prints a line of JSON with tokens and times.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    import mlx.core as mx

    group = mx.distributed.init(strict=True, backend="ring")
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[group.rank() % len(cores)]})
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    request = json.loads(Path(sys.argv[2]).read_text())
    model, _ = load_model(Path(sys.argv[1]), lazy=True)
    model.model.pipeline(group)
    mx.eval(model.parameters())
    mx.eval(mx.distributed.all_sum(mx.array(1.0), stream=mx.cpu))  # all are there
    times, tokens = [], []
    started = time.perf_counter()
    for token, _ in generate_step(mx.array(request["prompt"]), model, max_tokens=request["max_tokens"]):
        times.append(time.perf_counter() - started)
        tokens.append(int(token))
    mx.eval(mx.distributed.all_sum(mx.array(1.0), stream=mx.cpu))  # nobody leaves before the others are done
    if group.rank() == 0:
        print(json.dumps({"tokens": tokens, "times": times}), flush=True)


if __name__ == "__main__":
    main()
