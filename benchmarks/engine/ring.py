"""One stream on 2 stages against mlx-lm's own pipeline on 2 processes, and against steps that all go by the head.

The ring takes few architectures: the model is of qwen2's, of SmolLM2's size, with random weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.engine.answers import answer, common, rate
from benchmarks.engine.options import Options
from benchmarks.engine.report import Report, say
from benchmarks.engine.stand import Stand
from shardhub.blas import Blas
from shardhub.chain.head import Head
from shardhub.protocol import HopKind, NextHop

_WORKER = Path(__file__).with_name("ring_worker.py")
_SIZE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


async def measure(options: Options, report: Report) -> None:
    """By turns, with the same prompt; the ring's processes start anew for each, which is not counted."""
    from tests import tiny

    num_tokens = 8 if options.is_quick else 24
    rounds = options.num_rounds(3)
    placing = options.placing(Blas.REFERENCE)
    report.settings = {"tokens": num_tokens, "rounds": rounds, "blas": placing.blas.value, "model": "qwen2"}
    config = {**tiny.config("qwen2"), "max_position_embeddings": 4096, **({} if options.is_quick else _SIZE)}
    folder = tiny.save(tiny.build(config), config, options.folder / "qwen2")
    tiny.save_tokenizer(folder)
    prompt = [(37 * i + 11) % tiny.VOCAB for i in range(16)]
    async with Stand(folder, placing, report) as stand:
        nodes = stand.serve(2)
        heads = {"straight": await stand.head(nodes), "by the head": await stand.head(nodes)}
        _send_by_head(heads["by the head"])
        rates: dict[str, list[float]] = {name: [] for name in (*heads, "mlx.launch ring")}
        same = compared = 0
        for turn in range(rounds + 1):  # the first one warms
            ring = _ring(folder, options.folder, prompt, num_tokens)
            for name, head in heads.items():
                answered = await answer(head, prompt, num_tokens)
                equal, length = common(ring["tokens"], answered.tokens)
                same, compared = same + equal, compared + length
                if turn:
                    rates[name].append(answered.tokens_per_s)
            if turn:
                rates["mlx.launch ring"].append(rate(ring["times"]))
    for name, found_rates in rates.items():
        report.add(f"2 stages, {name}", found_rates, "tokens/s")
    for other in ("mlx.launch ring", "by the head"):
        ratios = [ours / theirs for ours, theirs in zip(rates["straight"], rates[other], strict=True)]
        report.add(f"straight / {other}", ratios)
    report.add("tokens as the ring's", [same / compared])


def _send_by_head(head: Head) -> None:
    """Let everything between nodes go through this process, as tools with a hub and spokes do."""
    hops = head.chain.paths._hops
    for pair in hops:
        hops[pair] = NextHop(kind=HopKind.OPENER)


def _ring(model: Path, folder: Path, prompt: list[int], num_tokens: int) -> dict[str, Any]:
    say("starting the ring")
    request = folder / "ring.json"
    request.write_text(json.dumps({"prompt": prompt, "max_tokens": num_tokens}))
    launch = Path(sys.executable).with_name("mlx.launch")
    command = [str(launch), "-n", "2", "--backend", "ring", "--python", sys.executable, str(_WORKER)]
    done = subprocess.run(
        [*command, str(model), str(request)], capture_output=True, text=True, check=False, timeout=300
    )
    lines = [line[line.index("{") :] for line in done.stdout.splitlines() if '"tokens"' in line]
    if not lines:
        sys.exit(f"the ring gave nothing: {done.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(lines[0])
    return report
