"""lm-eval through a gateway against the unsplit model: two small tasks, whose every number must be the same.

    pip install 'lm-eval[api]'                     # in an environment of its own: it brings 70 packages
    python -m benchmarks.gateway_lm_eval [--lm-eval PATH/TO/lm_eval]

Starts `shardhub gateway --demo`, lets lm-eval's local-completions score choices and texts over it, with the gateway's
own tokenizer routes, and scores the same requests with mlx_lm on the unsplit model. Prints a JSON record; exits with 1
where a log probability, or whether it is the greedy one, differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

QUESTIONS = [
    ("The capital of France is", ["Paris", "London", "Madrid"], 0),
    ("Water freezes at a temperature of", ["fifty degrees", "zero degrees Celsius", "noon"], 1),
    ("The opposite of hot is", ["warm", "tall", "cold"], 2),
    ("Two plus two equals", ["five", "four", "seven"], 1),
    ("The sun rises in the", ["east", "west", "cellar"], 0),
    ("A baby cat is called a", ["puppy", "calf", "kitten"], 2),
    ("In Python, a function is defined with the keyword", ["def", "func", "lambda x"], 0),
    ("Das Gegenteil von groß ist", ["rot", "klein", "schnell"], 1),
]
TEXTS = [
    "The lighthouse keeper climbed the stairs each evening, lit the lamp, and wrote one line in the log.",
    "A chain of machines is as fast as its slowest stage.\n\nSo the cut matters: it is read once a token.",
    "Été comme hiver, 東京の電車 run on time, mostly.",
]
_CHOICE = """
task: gateway_choice
output_type: multiple_choice
dataset_path: json
dataset_kwargs: {data_files: {test: choice.jsonl}}
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
_TEXT = """
task: gateway_text
output_type: loglikelihood_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: text.jsonl}}
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
"""
# What lm-eval asked for, and the log probability it got; of a choice, whether that was the greedy one.
Sample = tuple[list[str], tuple[float, bool | None]]
# Scores lines of (context, continuation) with mlx_lm on the whole model.
_UNSPLIT = """
import json, sys
from shardhub.blas import Blas, use_blas
use_blas(Blas(sys.argv[2]))
import mlx.core as mx
from mlx_lm import load
model, tokenizer = load(sys.argv[1])
first = tokenizer.bos_token_id or tokenizer.eos_token_id
for line in sys.stdin:
    context, continuation = json.loads(line)
    # Of a whole text, lm-eval scores every token, after the tokenizer's first one.
    before = tokenizer.encode(context, add_special_tokens=False) if context else [first]
    ids = tokenizer.encode(context + continuation, add_special_tokens=False)
    ids = ids if context else [first, *ids]
    logits = model(mx.array([ids]))[0].astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    rows = [(at - 1, ids[at]) for at in range(len(before), len(ids))]
    told = [float(logprobs[row, token].item()) for row, token in rows]
    greedy = all(int(logprobs[row].argmax().item()) == token for row, token in rows)
    print(json.dumps([sum(told), greedy]), flush=True)
"""


def main() -> None:
    """Score both ways and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm-eval", default="lm_eval", help="the command, of whatever environment")
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest difference of a summed log probability")
    parser.add_argument("--blas", default="reference", help="whose last digits do not depend on a prompt's chunks")
    options = parser.parse_args()
    os.environ["SHARDHUB_BLAS"] = options.blas  # of the nodes
    with tempfile.TemporaryDirectory(prefix="gateway-lm-eval-") as folder:
        work = Path(folder)
        _write_tasks(work)
        results, samples = _through_a_gateway(options.lm_eval, work)
        requests = [request for request, _ in samples]
        differences, flips = [], 0
        for (_, (loglikelihood, greedy)), (expected, is_greedy) in zip(
            samples, _unsplit(requests, options.blas), strict=True
        ):
            differences.append(abs(loglikelihood - expected))
            flips += greedy is not None and greedy != is_greedy
    record = {
        "results": results,
        "requests": len(samples),
        "largest_difference": max(differences),
        "greedy_differs": flips,
    }
    print(json.dumps(record))
    sys.exit(1 if flips or max(differences) > options.tolerance else 0)


def _write_tasks(work: Path) -> None:
    (work / "choice.yaml").write_text(_CHOICE.replace("choice.jsonl", str(work / "choice.jsonl")))
    (work / "text.yaml").write_text(_TEXT.replace("text.jsonl", str(work / "text.jsonl")))
    questions = [{"question": text, "choices": choices, "answer": answer} for text, choices, answer in QUESTIONS]
    for name, rows in (("choice", questions), ("text", [{"text": text} for text in TEXTS])):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (work / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _through_a_gateway(command: str, work: Path) -> tuple[dict[str, Any], list[Sample]]:
    """lm-eval's results, and its samples."""
    serve = [sys.executable, "-m", "shardhub", "gateway", "--demo", "--port", "0", "--json"]
    gateway = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
    try:
        assert gateway.stdout is not None
        ready = json.loads(gateway.stdout.readline())
        arguments = (
            f"base_url={ready['url']}/v1/completions,model={ready['model']},tokenizer_backend=remote,num_concurrent=2"
        )
        run = [command, "--model", "local-completions", "--model_args", arguments, "--include_path", str(work)]
        run += ["--tasks", "gateway_choice,gateway_text", "--batch_size", "4"]
        run += ["--output_path", str(work / "out"), "--log_samples"]
        subprocess.run(run, check=True, stdout=sys.stderr)
    finally:
        gateway.terminate()
        gateway.wait()
    results: dict[str, Any] = json.loads(next((work / "out").rglob("results_*.json")).read_text())["results"]
    samples: list[Sample] = []
    for file in sorted((work / "out").rglob("samples_*.jsonl")):
        for sample in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            given = [list(one.values()) for one in sample["arguments"].values()]
            for arguments_of, (answer,) in zip(given, sample["resps"], strict=True):
                samples.append(_sample(arguments_of, answer))
    return results, samples


def _sample(arguments: list[str], answer: Any) -> Sample:
    if len(arguments) == 1:  # of a whole text there is no greedy one
        value = answer[0] if isinstance(answer, list) else answer
        return ["", arguments[0]], (float(value), None)
    return arguments, (float(answer[0]), str(answer[1]) == "True")


def _unsplit(requests: list[list[str]], blas: str) -> list[tuple[float, bool]]:
    from shardhub.demo.smollm2 import fetch_and_convert

    model = fetch_and_convert(None, dtype="float32", progress=lambda text: None)
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run(
        [sys.executable, "-c", _UNSPLIT, str(model), blas], input=lines, check=True, capture_output=True, text=True
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    main()
