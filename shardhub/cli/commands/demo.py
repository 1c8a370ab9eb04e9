"""`shardhub demo`: the whole way on one machine, with a real small model and a Hub of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardhub.blas import Blas
from shardhub.cli.answers import summary
from shardhub.cli.flags import Output, flags
from shardhub.cli.options import BlasOption
from shardhub.cli.terminal import Terminal, end_answer, note, write_answer
from shardhub.errors import ChainError, DigestMismatch
from shardhub.naming import pipeline_name, shard_name

if TYPE_CHECKING:
    from shardhub.usecases.answer import Answer

USER = "demo"
MODEL = "SmolLM2-135M-Instruct"
PROMPT = "What is the capital of France, and what is it known for?"
MAX_TOKENS = 48
NUM_STAGES = 2
# Of the parity record: a full one has 64, and takes a minute on two slow cores.
PARITY_TOKENS = 8
# Loading and warming up a stage of this model takes a second or two; a cold machine compiles kernels first.
_START_TIMEOUT_S = 300
_SHARDHUB = [sys.executable, "-m", "shardhub"]


@flags("Demo")
class DemoFlags:
    """What is left afterwards."""

    keep: Annotated[bool, typer.Option("--keep", help="Leave the nodes running and show what to do next.")] = False
    blas: BlasOption = Blas.AUTO


def demo(running: DemoFlags, output: Output) -> int:
    """The whole way on this machine: a local Hub, a real small model, two nodes, text equal to the unsplit model's."""
    return _demo(keep=running.keep, as_json=output.as_json)


def _demo(*, keep: bool, as_json: bool) -> int:
    """Publish to a local Hub, serve by repo id, generate, compare; returns 0 if chain and unsplit model agree."""
    from shardhub.demo.smollm2 import fetch_and_convert
    from shardhub.toolchain import check_compiler

    check_compiler()
    note(f"1/5  {MODEL} (float32): fetched once, then kept in the cache")
    model = fetch_and_convert(None, dtype="float32", progress=note)
    work = Path(tempfile.mkdtemp(prefix="shardhub-demo-"))
    processes: list[subprocess.Popen[str]] = []
    try:
        note("2/5  shardhub hub serve: a Hub in a temporary folder, with the model as a source repo")
        environment = _start_hub(work, processes)
        # For the Hub's client in this process; it reads them when it is first imported.
        os.environ.update(environment)
        _upload(model, f"{USER}/{MODEL}")
        note(f"3/5  shardhub split-and-push {USER}/{MODEL} --stages {NUM_STAGES}")
        command = [*_SHARDHUB, "split-and-push", f"{USER}/{MODEL}", "--stages", str(NUM_STAGES), "--yes", "--json"]
        pushed = subprocess.run(command, capture_output=True, text=True, check=False)
        if pushed.returncode != 0:
            raise ChainError("The model was not published.", why=pushed.stderr[-2000:].strip())
        note(f"4/5  shardhub serve {USER}/{shard_name(MODEL, 0)}, and so on: {NUM_STAGES} processes")
        nodes = [
            _start(
                [*_SHARDHUB, "serve", f"{USER}/{shard_name(MODEL, index)}", "--port", "0", "--json"], work, processes
            )
            for index in range(NUM_STAGES)
        ]
        addresses = [str(_wait_ready(node, work)["address"]) for node in nodes]
        pipeline = f"{USER}/{pipeline_name(MODEL)}"
        generate = f"shardhub generate --manifest {pipeline} " + " ".join(f"--node {address}" for address in addresses)
        note(f'5/5  {generate} --prompt "{PROMPT}"')
        answer = _generate(pipeline, addresses, echo=not as_json)
        tokens = list(answer.tokens)
        expected, reference = _unsplit(model)
        note(f"     chain:   {summary(answer.usage)}")
        note(f"     unsplit: {reference:.1f} tokens/s in one process")
        if tokens != expected:
            raise DigestMismatch(
                "The chain and the unsplit model say different things.", why=f"{tokens} against {expected}."
            )
        note(f"     all {len(tokens)} tokens equal the unsplit model's")
        parity = _parity(pipeline, work)
        note(f"     by numbers: {parity}")
        if as_json:
            record = {
                "text": answer.text,
                "tokens": tokens,
                "unsplit_tokens": expected,
                "equal": True,
                "parity": parity,
                "tokens_per_s": round(answer.usage.tokens_per_s, 3),
                "unsplit_tokens_per_s": round(reference, 3),
            }
            print(json.dumps(record, ensure_ascii=False))
        if keep:
            _explain(work, generate, environment, processes)
            processes = []
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait()
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
    return 0


def _start_hub(work: Path, processes: list[subprocess.Popen[str]]) -> dict[str, str]:
    """Start a Hub; returns the environment that sends clients to it."""
    folder = str(work / "hub")
    init = [*_SHARDHUB, "hub", "init", "--dir", folder, "--user", USER, "--json"]
    made = json.loads(subprocess.run(init, stdout=subprocess.PIPE, text=True, check=True).stdout)
    hub = _start([*_SHARDHUB, "hub", "serve", "--dir", folder, "--port", "0", "--json"], work, processes)
    return {
        "HF_ENDPOINT": str(_wait_ready(hub, work)["endpoint"]),
        "HF_TOKEN": str(made["token"]),
        "HF_HUB_DISABLE_XET": "1",
        "SHARDHUB_CACHE": str(work / "cache"),
    }


def _upload(model: Path, repo: str) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from shardhub.hub.client import hub_api

    constants.HF_HUB_DISABLE_XET = True  # the client may have been imported before the environment was set
    disable_progress_bars()
    api = hub_api()
    api.create_repo(repo, private=False)
    api.upload_folder(repo_id=repo, folder_path=model)


def _start(command: list[str], work: Path, processes: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Start a process that says on stdout when it is ready; what it logs goes to a file."""
    with _log(work, len(processes)).open("w") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C here ends it through us
        )
    processes.append(process)
    return process


def _wait_ready(process: subprocess.Popen[str], work: Path) -> dict[str, Any]:
    """The JSON line a process prints when it is ready."""
    timer = threading.Timer(_START_TIMEOUT_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if not line:
        process.wait()
        logs = "\n".join(path.read_text()[-1000:] for path in sorted(work.glob("*.log")))
        raise ChainError("A process of the demo did not start.", why=logs.strip())
    ready: dict[str, Any] = json.loads(line)
    return ready


def _log(work: Path, number: int) -> Path:
    return work / f"process-{number}.log"


def _generate(pipeline: str, addresses: list[str], *, echo: bool) -> Answer:
    from shardhub.usecases.answer import Sampling
    from shardhub.usecases.open_head import open_head
    from shardhub.usecases.start_head import HeadSettings

    settings = HeadSettings(pipeline=pipeline, nodes=tuple(addresses), allow_local=False)
    with open_head(settings, Terminal()) as head:
        stream = head.stream(PROMPT, Sampling(max_tokens=MAX_TOKENS))
        for piece in stream:
            if echo:
                write_answer(piece.text)
        if echo:
            end_answer()
        return stream.answer


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


def _parity(pipeline: str, work: Path) -> str:
    """Have the stages' numbers compared with the whole model's and the record published; what it says."""
    command = [*_SHARDHUB, "verify", pipeline, "--reference", "--push", "--tokens", str(PARITY_TOKENS), "--json"]
    with (work / "verify.log").open("w") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
    if done.returncode != 0:
        raise ChainError("The stages were not compared by numbers.", why=(work / "verify.log").read_text()[-1000:])
    return str(json.loads(done.stdout)["summary"])


def _explain(work: Path, generate: str, environment: dict[str, str], processes: list[subprocess.Popen[str]]) -> None:
    note("")
    note("The Hub and the nodes are left running. Go on with:")
    for name, value in environment.items():
        note(f"  export {name}={value}")
    note(f'  {generate} --prompt "Tell me a joke"')
    note(f"  {generate.replace(' generate ', ' chat ')}")
    note("  shardhub ls")
    note(f"  kill {' '.join(str(process.pid) for process in processes)}    # ends them")
    note(f"  rm -r {work}")
