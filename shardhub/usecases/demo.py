"""The demo: the whole way on one machine, with a real small model and a Hub of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shardhub.demo.smollm2 import fetch_and_convert
from shardhub.errors import DigestMismatch
from shardhub.naming import pipeline_name, shard_name
from shardhub.toolchain import check_compiler
from shardhub.usecases.answer import Answer, Sampling
from shardhub.usecases.demo_chain import MODEL, NUM_STAGES
from shardhub.usecases.open_head import open_head
from shardhub.usecases.processes import Processes, command_text, run_command
from shardhub.usecases.start_head import HeadSettings
from shardhub.usecases.watcher import SILENT, Watcher

USER = "demo"
PROMPT = "What is the capital of France, and what is it known for?"
MAX_TOKENS = 48
# Tokens of the demo's parity record: a full one has 64, and takes a minute on two slow cores.
PARITY_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftRunning:
    """A Hub and nodes that the demo leaves running.

    Attributes:
        environment: Variables that lead clients to the Hub.
        pipeline: The pipeline's repo.
        addresses: The nodes'.
        process_ids: Of the Hub and the nodes.
        folder: Holds all of it.
    """

    environment: dict[str, str]
    pipeline: str
    addresses: tuple[str, ...]
    process_ids: tuple[int, ...]
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRun:
    """The result of the demo: an answer over two nodes whose tokens are the unsplit model's.

    Attributes:
        answer: Over the nodes.
        unsplit_tokens: The unsplit model's.
        unsplit_tokens_per_s: Its rate, in this process.
        parity: How the stages' numbers compare with the whole model's, in a line.
        left: What is left running, if that was asked for.
    """

    answer: Answer
    unsplit_tokens: tuple[int, ...]
    unsplit_tokens_per_s: float
    parity: str
    left: LeftRunning | None


def _pass_over(texts: Iterator[str]) -> None:
    """Take all of an answer's text, and show none of it."""
    deque(texts, maxlen=0)


def demo(
    *, keep: bool = False, watcher: Watcher = SILENT, show: Callable[[Iterator[str]], None] = _pass_over
) -> DemoRun:
    """Publish a model to a Hub on this machine, serve it by repo id, generate, and compare.

    The environment of this process leads to that Hub afterwards.

    Args:
        keep: Leave the Hub and the nodes running.
        watcher: Told of each step.
        show: Given the answer's text, piece by piece as it comes.

    Raises:
        DigestMismatch: The nodes and the unsplit model say different things.
        ChainError: A process did not start, or failed.
    """
    check_compiler()
    watcher.note(f"1/5  {MODEL} (float32): fetched once, then kept in the cache")
    model = fetch_and_convert(None, dtype="float32", progress=watcher.note)
    work = Path(tempfile.mkdtemp(prefix="shardhub-demo-"))
    left: LeftRunning | None = None
    try:
        with Processes(work) as processes:
            watcher.note("2/5  shardhub hub serve: a Hub in a temporary folder, with the model as a source repo")
            environment = _start_hub(work, processes)
            # For the Hub's client in this process; it reads them when it is first imported.
            os.environ.update(environment)
            _upload(model, f"{USER}/{MODEL}")
            watcher.note(f"3/5  shardhub split-and-push {USER}/{MODEL} --stages {NUM_STAGES}")
            run_command(
                *("split-and-push", f"{USER}/{MODEL}"),
                log=work / "push.log",
                failure="The model was not published.",
                stages=NUM_STAGES,
                yes=True,
                json=True,
            )
            watcher.note(f"4/5  shardhub serve {USER}/{shard_name(MODEL, 0)}, and so on: {NUM_STAGES} processes")
            nodes = [
                processes.start("serve", f"{USER}/{shard_name(MODEL, index)}", port=0, json=True)
                for index in range(NUM_STAGES)
            ]
            addresses = tuple(str(processes.ready(node)["address"]) for node in nodes)
            pipeline = f"{USER}/{pipeline_name(MODEL)}"
            watcher.note(f"5/5  {command_text('generate', manifest=pipeline, node=addresses, prompt=PROMPT)}")
            answer = _answer(pipeline, addresses, watcher, show)
            expected, rate = _unsplit(model)
            watcher.note(f"     chain:   {answer.usage.summary}")
            watcher.note(f"     unsplit: {rate:.1f} tokens/s in one process")
            if answer.tokens != expected:
                raise DigestMismatch(
                    "The chain and the unsplit model chose different tokens.",
                    why=f"The chain: {list(answer.tokens)}. The unsplit model: {list(expected)}.",
                )
            watcher.note(f"     all {len(answer.tokens)} tokens equal the unsplit model's")
            parity = _parity(pipeline, work)
            watcher.note(f"     by numbers: {parity}")
            if keep:
                left = LeftRunning(
                    environment=environment,
                    pipeline=pipeline,
                    addresses=addresses,
                    process_ids=processes.leave(),
                    folder=work,
                )
    finally:
        if left is None:
            shutil.rmtree(work, ignore_errors=True)
    return DemoRun(answer=answer, unsplit_tokens=expected, unsplit_tokens_per_s=rate, parity=parity, left=left)


def _start_hub(work: Path, processes: Processes) -> dict[str, str]:
    """Start a Hub, and return the environment that directs clients to it."""
    folder = str(work / "hub")
    made = run_command(
        "hub", "init", log=work / "hub.log", failure="The Hub was not created.", dir=folder, user=USER, json=True
    )
    endpoint = processes.ready(processes.start("hub", "serve", dir=folder, port=0, json=True))["endpoint"]
    return {
        "HF_ENDPOINT": str(endpoint),
        "HF_TOKEN": str(made["token"]),
        "SHARDHUB_CACHE": str(work / "cache"),
    }


def _upload(model: Path, repo: str) -> None:
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from shardhub.hub.client import hub_api

    disable_progress_bars()
    api = hub_api()
    api.create_repo(repo, private=False)
    api.upload_folder(repo_id=repo, folder_path=model)


def _answer(
    pipeline: str, addresses: tuple[str, ...], watcher: Watcher, show: Callable[[Iterator[str]], None]
) -> Answer:
    settings = HeadSettings(pipeline=pipeline, nodes=addresses, allow_local=False)
    with open_head(settings, watcher) as head:
        stream = head.stream(PROMPT, Sampling(max_tokens=MAX_TOKENS))
        show(piece.text for piece in stream)
        return stream.answer


def _unsplit(model: Path) -> tuple[tuple[int, ...], float]:
    """Generate with mlx_lm and the whole model in this process: token ids and tokens per second."""
    from mlx_lm import load, stream_generate

    whole, tokenizer = load(str(model))[:2]
    ids = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True)
    responses = list(stream_generate(whole, tokenizer, ids, max_tokens=MAX_TOKENS))
    tokens = [response.token for response in responses]
    if tokens and tokens[-1] in tokenizer.eos_token_ids:
        tokens.pop()
    return tuple(tokens), float(responses[-1].generation_tps)


def _parity(pipeline: str, work: Path) -> str:
    """Compare the stages' numbers with the whole model's, publish the record, and return its summary."""
    record = run_command(
        *("verify", pipeline),
        log=work / "verify.log",
        failure="The stages were not compared by numbers.",
        reference=True,
        push=True,
        tokens=PARITY_TOKENS,
        json=True,
    )
    return str(record["summary"])
