"""`shardhub demo`: the whole way on one machine, with a real small model."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from shardhub.chain.head import Timing
from shardhub.cli.generate import HeadOptions, start_head, summary
from shardhub.cli.loop import LoopThread
from shardhub.cli.run import note
from shardhub.cli.split import CutOptions, split
from shardhub.demo.smollm2 import fetch_and_convert
from shardhub.errors import DigestMismatch, NodeLost
from shardhub.naming import pipeline_name, shard_name
from shardhub.parameters import SamplingParameters
from shardhub.toolchain import check_compiler

NAME = "smollm2"
PROMPT = "What is the capital of France, and what is it known for?"
MAX_TOKENS = 48
NUM_STAGES = 2
# Loading and warming up a stage of this model takes a second or two; a cold machine compiles kernels first.
_START_TIMEOUT_S = 300


def demo(*, keep: bool, as_json: bool) -> int:
    """Split, serve, generate, compare; returns 0 if chain and unsplit model say the same."""
    check_compiler()
    note("1/4  SmolLM2-135M-Instruct (float32): fetched once, then kept in the cache")
    model = fetch_and_convert(None, dtype="float32", progress=note)
    work = Path(tempfile.mkdtemp(prefix="shardhub-demo-"))
    nodes: list[subprocess.Popen[str]] = []
    try:
        note(f"2/4  shardhub split {model} {work} --stages {NUM_STAGES}")
        cut = CutOptions(stages=NUM_STAGES, cuts=None, machines=[], plan=None, context=None)
        with contextlib.redirect_stdout(sys.stderr):
            split(model, work, cut, only=None, name=NAME, as_json=False)
        note(f"3/4  shardhub serve {work / shard_name(NAME, 0)}, and so on: {NUM_STAGES} processes")
        addresses = []
        nodes.extend(_serve(work / shard_name(NAME, index)) for index in range(NUM_STAGES))
        for index, process in enumerate(nodes):
            ready = _wait_ready(process, work / shard_name(NAME, index))
            addresses.append(str(ready["address"]))
            note(f"     layers {ready['layers'][0]} to {ready['layers'][1] - 1} at {ready['address']}")
        pipeline = work / pipeline_name(NAME)
        command = f"shardhub generate --manifest {pipeline} " + " ".join(f"--node {address}" for address in addresses)
        note(f'4/4  {command} --prompt "{PROMPT}"')
        tokens, text, timing = _generate(pipeline, addresses, echo=not as_json)
        expected, reference = _unsplit(model)
        equal = tokens == expected
        note(f"     chain:   {summary(timing)}")
        note(f"     unsplit: {reference:.1f} tokens/s in one process")
        note(
            f"     {len(tokens)} of {len(expected)} tokens equal the unsplit model's"
            if equal
            else f"     DIFFERENT from the unsplit model: {expected}"
        )
        if as_json:
            record = {
                "text": text,
                "tokens": tokens,
                "unsplit_tokens": expected,
                "equal": equal,
                "tokens_per_s": round(timing.tokens_per_s, 3),
                "unsplit_tokens_per_s": round(reference, 3),
            }
            print(json.dumps(record, ensure_ascii=False))
        if not equal:
            raise DigestMismatch("The chain and the unsplit model say different things.", why=f"{tokens} != {expected}")
        if keep:
            _explain(work, command, nodes)
            nodes = []
    finally:
        for process in nodes:
            process.terminate()
        for process in nodes:
            process.wait()
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
    return 0


def _serve(folder: Path) -> subprocess.Popen[str]:
    """Start a node; what it logs goes to a file beside the shard."""
    with folder.with_suffix(".log").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "shardhub", "serve", str(folder), "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C here ends it through us
        )


def _wait_ready(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """Wait for the line that says where a node listens."""
    timer = threading.Timer(_START_TIMEOUT_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if not line:
        process.wait()
        raise NodeLost(
            f"The node for {folder.name} did not start.", why=folder.with_suffix(".log").read_text()[-2000:].strip()
        )
    ready: dict[str, Any] = json.loads(line)
    return ready


def _generate(pipeline: Path, addresses: list[str], *, echo: bool) -> tuple[list[int], str, Timing]:
    options = HeadOptions(pipeline=pipeline, manifest=None, nodes=addresses, no_local=True, context=None, memory=None)
    timing = Timing()
    with LoopThread() as loop:
        head = start_head(loop, options)
        try:
            ids = head.tokenizer.render_chat([{"role": "user", "content": PROMPT}])
            answer = head.answer(ids, SamplingParameters(), max_tokens=MAX_TOKENS, timing=timing)
            tokens, text = [], ""
            for piece in loop.iterate(answer):
                text += piece.text
                if piece.token is not None:
                    tokens.append(piece.token)
                if echo:
                    print(piece.text, end="", flush=True)
            if echo:
                print()
        finally:
            loop.wait(head.stop())
    return tokens, text, timing


def _unsplit(model: Path) -> tuple[list[int], float]:
    """What mlx_lm says with the whole model in this process: token ids and tokens per second."""
    from mlx_lm import load, stream_generate

    whole, tokenizer = load(str(model))[:2]
    ids = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True)
    responses = list(stream_generate(whole, tokenizer, ids, max_tokens=MAX_TOKENS))
    tokens = [response.token for response in responses]
    if tokens and tokens[-1] in tokenizer.eos_token_ids:
        tokens.pop()
    return tokens, float(responses[-1].generation_tps)


def _explain(work: Path, command: str, nodes: list[subprocess.Popen[str]]) -> None:
    note("")
    note("The nodes are left running. Go on with:")
    note(f'  {command} --prompt "Tell me a joke"')
    note(f"  {command.replace(' generate ', ' chat ')}")
    note(f"  kill {' '.join(str(process.pid) for process in nodes)}    # ends them")
    note(f"  rm -r {work}")
