"""Greedy tokens of chains against mlx_lm's own on the unsplit model: SmolLM2 in several dtypes and shapes of chains.

Each stage is a process of its own over gRPC, but the stages named "here", which run in the caller.

    python benchmarks/parity.py [--tokens 64] [--dtypes float32,bfloat16,4bit] [--json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROMPT = "Write a short story about a lighthouse keeper who finds a message in a bottle."
# Name, cuts, the shards of each node, stages that run in the caller.
SHAPES: list[tuple[str, tuple[int, ...], tuple[tuple[int, ...], ...]]] = [
    ("1 stage", (), ((0,),)),
    ("2 stages, uneven (7/23)", (7,), ((0,), (1,))),
    ("3 stages, middle here", (10, 20), ((0,), (2,))),
    ("3 stages, union of two", (4, 18), ((0, 1), (2,))),
    ("4 stages, uneven", (1, 12, 28), ((0,), (1,), (2,), (3,))),
    ("2 stages, all here", (15,), ()),
]

_UNSPLIT = """
import json, sys
from mlx_lm import load, stream_generate
model, tokenizer = load(sys.argv[1])
ids = tokenizer.apply_chat_template([{"role": "user", "content": sys.argv[2]}], add_generation_prompt=True)
tokens = [r.token for r in stream_generate(model, tokenizer, ids, max_tokens=int(sys.argv[3]))]
print(json.dumps([token for token in tokens if token not in tokenizer.eos_token_ids]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtypes", default="float32,bfloat16,4bit")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for dtype in options.dtypes.split(","):
        model = _model(dtype)
        arguments = [sys.executable, "-c", _UNSPLIT, str(model), PROMPT, str(options.tokens)]
        expected = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
        for name, cuts, groups in SHAPES:
            tokens, note = _chain(model, cuts, groups, options.tokens)
            same = sum(a == b for a, b in zip(tokens, expected, strict=False))
            rows.append({"dtype": dtype, "chain": name, "same": same, "of": len(expected), "stages": note})
            if not options.json:
                verdict = "equal" if tokens == expected else "DIFFERENT"
                print(f"{dtype:<9} {name:<26} {same:>3} of {len(expected)}  {verdict}", flush=True)
    if options.json:
        print(json.dumps(rows))
    sys.exit(any(row["same"] != row["of"] for row in rows))


def _model(dtype: str) -> Path:
    from shardhub.demo.smollm2 import fetch_and_convert

    return fetch_and_convert(
        dtype=None if dtype == "4bit" else dtype, progress=lambda text: print(text, file=sys.stderr)
    )


def _chain(model: Path, cuts: tuple[int, ...], groups: Any, num_tokens: int) -> tuple[list[int], Any]:
    shardhub = [sys.executable, "-m", "shardhub"]
    with tempfile.TemporaryDirectory() as folder:
        how = ["--cuts", ",".join(map(str, cuts))] if cuts else ["--stages", "1"]
        command = [*shardhub, "split", str(model), folder, "--name", "m", "--no-parity", *how]
        subprocess.run(command, check=True, capture_output=True)
        nodes = [
            subprocess.Popen(
                [*shardhub, "serve", *(f"{folder}/m-shard-{index}" for index in group), "--port", "0", "--json"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for group in groups
        ]
        try:
            addresses = []
            for node in nodes:
                assert node.stdout is not None
                addresses.append(json.loads(node.stdout.readline())["address"])
            named = [part for address in addresses for part in ("--node", address)]
            command = [*shardhub, "generate", f"{folder}/m-pipeline", *named, "--prompt", PROMPT]
            command += ["--max-tokens", str(num_tokens), "--json"]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        finally:
            for node in nodes:
                node.terminate()
            for node in nodes:
                node.wait()
    return result["tokens"], result["stages"]


if __name__ == "__main__":
    main()
