"""Making a parity record on this machine, if the model fits; saying why not, if it does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.cli.run import Status, note
from shardhub.cli.sizes import parse_memory
from shardhub.errors import IntegrityError, UnsupportedModel
from shardhub.manifest import Parity, ParityPrompt, Source
from shardhub.parity import (
    CHUNK,
    NUM_TOKENS,
    PROMPT_LENGTHS,
    UNKNOWN,
    Numbers,
    newest,
    numeric_class,
    parse_record,
    read_record_files,
)
from shardhub.shard import Pipeline, read_pipeline
from shardhub.splitting.contents import ModelContents, StageContents

if TYPE_CHECKING:
    import mlx.core as mx

    from shardhub.model.anatomy import Anatomy
    from shardhub.model.build import Blueprint
    from shardhub.model.parity import StageTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityOptions:
    """The options of commands that split.

    Attributes:
        skip: Do not run the stages.
        memory: Memory to stay within, as text; None asks the machine.
    """

    skip: bool = False
    memory: str | None = None


def measure_split(
    checkpoint: Checkpoint,
    contents: ModelContents,
    stages: Sequence[StageContents],
    source: Source,
    options: ParityOptions,
) -> Numbers:
    """Run the stages of a cut against the whole model, if its weights are here and fit; told on stderr.

    Args:
        checkpoint, contents, stages: As `splitting.split`.
        source: Where the checkpoint is.
        options: Whether, and within what memory.

    Raises:
        UsageError: The memory is no size.
        WeightFileError: A file changed since its header was read.
    """
    numbers = _measured(checkpoint, contents, stages, source, options)
    note(f"parity: {numbers.line}")
    if numbers.parity is not None and not numbers.parity.is_exact:
        note("warning: the stages' numbers are not the whole model's; the record and the cards say so")
    return numbers


def _measured(
    checkpoint: Checkpoint,
    contents: ModelContents,
    stages: Sequence[StageContents],
    source: Source,
    options: ParityOptions,
) -> Numbers:
    budget_bytes = parse_memory(options.memory)
    if options.skip:
        return Numbers(not_run="--no-parity was given")
    if source.repo is not None:
        return Numbers(not_run=f"the weights ({_gb(checkpoint.size_bytes)}) were read from the Hub piece by piece")
    from shardhub.model.anatomy import examine
    from shardhub.model.build import Blueprint
    from shardhub.model.memory import memory_budget
    from shardhub.model.parity import StageTensors, checkpoint_weights, fits
    from shardhub.model.proof import StageCut

    budget = memory_budget() if budget_bytes is None else budget_bytes
    specs = {final: checkpoint.tensors[name].spec for final, name in contents.stored_names.items()}
    specs |= contents.computed.specs if contents.computed is not None else {}
    size_bytes = sum(spec.size_bytes for spec in specs.values())
    if not fits(size_bytes, budget):
        return Numbers(not_run=f"weights {_gb(size_bytes)}, this machine's budget is {_gb(budget)}")
    blueprint = Blueprint({key: value for key, value in checkpoint.config.items() if key != "shardhub"}, specs)
    chain = [
        StageTensors(
            cut=StageCut(
                start=stage.start,
                stop=stage.stop,
                crossings_in=tuple(crossing.name for crossing in stage.crossings_in),
                crossings_out=tuple(crossing.name for crossing in stage.crossings_out),
            ),
            tensors=stage.tensors,
        )
        for stage in stages
    ]
    weights = checkpoint_weights(checkpoint, contents)
    try:
        parity = record(
            blueprint,
            examine(blueprint, stages[0].proof_chunks),
            chain,
            weights,
            dtype=contents.dtype,
            made_by="split",
            pipeline_id=UNKNOWN,
        )
    except UnsupportedModel as error:
        return Numbers(not_run=f"MLX cannot run this model on this machine: {error.why.rstrip('.')}")
    return Numbers(parity=parity)


def record(
    blueprint: Blueprint,
    anatomy: Anatomy,
    chain: Sequence[StageTensors],
    weights: Mapping[str, mx.array],
    *,
    dtype: str,
    made_by: str,
    pipeline_id: str,
    num_tokens: int = NUM_TOKENS,
) -> Parity:
    """Run stages and whole model side by side, with progress on stderr, and write down what came out."""
    from importlib.metadata import version

    import mlx.core as mx

    from shardhub import __version__
    from shardhub.engine.host import host_facts
    from shardhub.model.parity import compare

    status = Status()
    start = time.monotonic()
    try:
        status("running the stages against the whole model")
        found = compare(blueprint, anatomy, chain, weights, num_tokens=num_tokens, progress=progress_of(status))
    finally:
        status.clear()
    note(f"stages and whole model ran {num_tokens} tokens in {time.monotonic() - start:.1f} s")
    return Parity.model_validate(
        {
            "pipeline_id": pipeline_id,
            "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "made_by": made_by,
            "shardhub": __version__,
            "mlx_lm": version("mlx-lm"),
            "device": str(mx.default_device()),
            "numeric_class": numeric_class(host_facts()),
            "dtype": dtype,
            "vocab_size": found.vocab_size,
            "chunk": CHUNK,
            "prompts": tuple(
                ParityPrompt(length=length, tokens=tokens)
                for length, tokens in zip(PROMPT_LENGTHS, found.tokens, strict=False)
            ),
            "num_tokens": sum(map(len, found.tokens)),
            "tokens_equal": found.tokens_equal,
            "max_abs_logit_difference": found.max_abs_logit_difference,
            "num_nan_steps": found.num_nan_steps,
        }
    )


def progress_of(status: Status) -> Callable[[int, int], None]:
    """Tokens done and in all, shown as a status."""

    def show(done: int, total: int) -> None:
        status(f"comparing tokens: {done} of {total}")

    return show


def parity_report(numbers: Numbers) -> dict[str, object]:
    """What was proven, for `--json`."""
    report: dict[str, object] = {"summary": numbers.line}
    if (found := numbers.parity) is not None:
        report |= {
            "num_tokens": found.num_tokens,
            "tokens_equal": found.tokens_equal,
            "max_abs_logit_difference": found.max_abs_logit_difference,
            "num_nan_steps": found.num_nan_steps,
        }
    return report


def newest_record(pipeline: Pipeline) -> Parity | None:
    """The newest record beside a manifest on this disk; None without one that can be read."""
    try:
        return newest(
            parse_record(name, data, pipeline_id=pipeline.manifest.pipeline_id, where=name)
            for name, data in read_record_files(pipeline.folder).items()
        )
    except IntegrityError:
        return None


def known_numbers(folder: Path) -> Numbers:
    """What a pipeline's folder that is in place says of its numbers.

    Raises:
        UsageError, IntegrityError: It is no pipeline, or not what was published.
    """
    found = newest_record(read_pipeline(folder))
    return Numbers(parity=found, not_run="" if found is not None else "the pipeline was there already")


def _gb(size_bytes: int) -> str:
    if size_bytes < 10**8:
        return f"{size_bytes / 1e6:.2f} MB"
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes < 10**10 else f"{size_bytes / 1e9:.0f} GB"
