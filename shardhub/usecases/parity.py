"""Making a parity record on this machine, or reporting why the model does not fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.errors import ProofFailed, UnsupportedModel
from shardhub.manifest import Parity, ParityPrompt, Source
from shardhub.parity import (
    CHUNK,
    NUM_TOKENS,
    PROMPT_LENGTHS,
    UNKNOWN,
    Numbers,
    mismatch,
    newest_record,
    numeric_class,
    settle,
)
from shardhub.setting_checks import check_settings
from shardhub.shard import read_pipeline
from shardhub.sizes import size_text
from shardhub.splitting.contents import ModelContents, StageContents
from shardhub.usecases.sizes import check_sizes, parse_memory
from shardhub.usecases.watcher import SILENT, Watcher

if TYPE_CHECKING:
    import mlx.core as mx

    from shardhub.model.anatomy import Anatomy
    from shardhub.model.build import Blueprint
    from shardhub.model.parity import StageTensors

# Tokens after which the pace of a comparison is known: the first ones wait for a prompt and for compiled kernels.
_FEWEST_FOR_PACE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ParitySettings:
    """How stages are compared with the whole model before they are published.

    Attributes:
        skip: Do not run the stages.
        memory: Memory budget, as text; None derives it from the machine.
        allow_inexact: Go on if the stages' numbers differ from the whole model's.
    """

    skip: bool = False
    memory: str | None = None
    allow_inexact: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        check_sizes(self.memory)


def measure_split(
    checkpoint: Checkpoint,
    contents: ModelContents,
    stages: Sequence[StageContents],
    source: Source,
    options: ParitySettings,
    watcher: Watcher = SILENT,
) -> Numbers:
    """Compare the stages of a cut with the whole model, if its weights are here and fit.

    Args:
        checkpoint, contents, stages: As for `splitting.split`.
        source: Where the checkpoint is.
        options: Whether to compare, and within what memory.

    Raises:
        UsageError: The memory is not a size.
        WeightFileError: A file changed since its header was read.
    """
    numbers = _measured(checkpoint, contents, stages, source, options, watcher)
    watcher.note(f"parity: {numbers.line}")
    return numbers


def settle_numbers(
    numbers: Numbers,
    recorded: str | None,
    *,
    where: str,
    stages: Sequence[StageContents],
    allow_inexact: bool,
    others: Sequence[str] = (),
    watcher: Watcher = SILENT,
) -> str | None:
    """Refuse stages whose numbers differ, or warn if that is allowed; describes the difference in one line.

    Args:
        numbers: Numbers measured now, or known of the existing pipeline.
        recorded: What the existing manifest states as inexact; valid until something else is measured.
        where: The model, for messages.
        stages: Stages of the cut.
        allow_inexact: Whether to go on all the same.
        others: Further findings; see `parity.settle`.

    Returns:
        As `parity.settle`.

    Raises:
        ParityFailed: The numbers differ, and that is not allowed.
    """
    measured = recorded
    if measured is None and numbers.parity is not None:
        measured = mismatch(numbers.parity)
    findings = [measured] if measured is not None else []
    if recorded is None:
        findings += others
    cut = ", ".join(f"[{stage.start}, {stage.stop})" for stage in stages)
    inexact = settle(findings, where=f"{where}, cut into the layers {cut},", allow_inexact=allow_inexact)
    if inexact is not None:
        warn_inexact(inexact, watcher)
    return inexact


def twin_findings(contents: ModelContents) -> list[str]:
    """Differences between the stages and the whole of a small model with the same configuration."""
    twin = contents.twin
    return [twin.line] if twin is not None and twin.finding is not None else []


def warn_inexact(inexact: str | None, watcher: Watcher) -> None:
    """Warn that a chain is inexact, if it is."""
    if inexact is not None:
        watcher.note(f"warning: this chain is inexact; against the whole model: {inexact}")


def _measured(
    checkpoint: Checkpoint,
    contents: ModelContents,
    stages: Sequence[StageContents],
    source: Source,
    options: ParitySettings,
    watcher: Watcher,
) -> Numbers:
    budget_bytes = parse_memory(options.memory)
    if options.skip:
        return Numbers(not_run="skipped, as requested")
    if source.repo is not None and not checkpoint.is_virtual:
        return Numbers(not_run=f"the weights ({size_text(checkpoint.size_bytes)}) were read from the Hub in ranges")
    from shardhub.model.anatomy import examine
    from shardhub.model.build import Blueprint
    from shardhub.model.load import stage_cut_of
    from shardhub.model.memory import memory_budget
    from shardhub.model.parity import StageTensors, checkpoint_weights, fits

    budget = memory_budget() if budget_bytes is None else budget_bytes
    specs = {final: checkpoint.tensors[name].spec for final, name in contents.stored_names.items()}
    specs |= contents.computed.specs if contents.computed is not None else {}
    size_bytes = sum(spec.size_bytes for spec in specs.values())
    if not fits(size_bytes, budget):
        return Numbers(not_run=f"weights {size_text(size_bytes)}, but this machine's budget is {size_text(budget)}")
    blueprint = Blueprint({key: value for key, value in checkpoint.config.items() if key != "shardhub"}, specs)
    chain = [
        StageTensors(
            cut=stage_cut_of(stage),
            tensors=stage.tensors,
        )
        for stage in stages
    ]
    try:
        if checkpoint.is_virtual:
            watcher.doing("quantising the model, to compare the stages with it")
        weights = checkpoint_weights(checkpoint, contents)
    finally:
        watcher.doing("")
    try:
        parity = record(
            blueprint,
            examine(blueprint, stages[0].proof_chunks),
            chain,
            weights,
            dtype=contents.dtype,
            made_by="split",
            pipeline_id=UNKNOWN,
            watcher=watcher,
        )
    except ProofFailed:
        raise
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
    watcher: Watcher = SILENT,
) -> Parity:
    """Run the stages and the whole model side by side, and make the parity record."""
    from importlib.metadata import version

    import mlx.core as mx

    from shardhub.engine.host import host_facts
    from shardhub.model.parity import compare
    from shardhub.version import __version__

    start = time.monotonic()
    try:
        watcher.doing("comparing the stages with the whole model")
        compared = compare(blueprint, anatomy, chain, weights, num_tokens=num_tokens, progress=comparing(watcher))
    finally:
        watcher.doing("")
    watcher.note(f"stages and whole model ran {num_tokens} tokens in {time.monotonic() - start:.1f} s")
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
            "vocab_size": compared.vocab_size,
            "chunk": CHUNK,
            "prompts": tuple(
                ParityPrompt(length=length, tokens=tokens)
                for length, tokens in zip(PROMPT_LENGTHS, compared.tokens, strict=False)
            ),
            "num_tokens": sum(map(len, compared.tokens)),
            "tokens_equal": compared.tokens_equal,
            "max_abs_logit_difference": compared.max_abs_logit_difference,
            "num_nan_steps": compared.num_nan_steps,
        }
    )


def comparing(watcher: Watcher) -> Callable[[int, int], None]:
    """Make a callback that reports the tokens compared, the total, and the time left once a few show the pace."""
    began_at = time.monotonic()

    def show(done: int, total: int) -> None:
        left = time_left(done, total, time.monotonic() - began_at)
        watcher.doing(f"comparing tokens: {done} of {total}{f', {left}' if left else ''}")

    return show


def time_left(done: int, total: int, elapsed_s: float) -> str:
    """The time that the rest of some tokens takes at the pace so far, in words; empty while too few show it."""
    if done < _FEWEST_FOR_PACE:
        return ""
    left_s = elapsed_s / done * (total - done)
    return f"about {left_s:.0f} s left" if left_s < 120 else f"about {left_s / 60:.0f} min left"


def parity_report(numbers: Numbers) -> dict[str, object]:
    """The comparison's results as JSON-able data."""
    report: dict[str, object] = {"summary": numbers.line}
    if (comparison := numbers.parity) is not None:
        report |= {
            "num_tokens": comparison.num_tokens,
            "tokens_equal": comparison.tokens_equal,
            "max_abs_logit_difference": comparison.max_abs_logit_difference,
            "num_nan_steps": comparison.num_nan_steps,
        }
    return report


def known_numbers(folder: Path) -> tuple[Numbers, str | None]:
    """Read what an existing pipeline's folder records of its numbers, and what its manifest states as inexact.

    Raises:
        UsageError, IntegrityError: The folder is not a pipeline, or not what was published.
    """
    manifest = read_pipeline(folder).manifest
    parity = newest_record(folder, manifest.pipeline_id)
    not_run = "" if parity is not None else "the pipeline already existed"
    return Numbers(parity=parity, not_run=not_run), manifest.inexact
