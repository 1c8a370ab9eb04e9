"""Verifying a live chain by running a parity record's prompts on it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardhub.chain.head import Head
from shardhub.chain.teacher_forcing import greedy_choices
from shardhub.errors import UsageError
from shardhub.manifest import NumericClass, Parity
from shardhub.parity import difference, fixed_prompt, newest, numeric_class, one_class
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.parity import comparing
from shardhub.usecases.start_head import HeadSettings, start_head
from shardhub.usecases.verify_target import open_target
from shardhub.usecases.watcher import SILENT, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A token that the chain chose differently from the record."""

    prompt: int
    token: int
    recorded: int
    chosen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunVerification:
    """A parity record's prompts, run again on a live chain.

    Attributes:
        record: The record they are compared with.
        nodes: Name and numeric class of each place of the chain.
        differences: Tokens that differ from the record, in order.
        is_promised: Whether record and nodes compute alike, so that no token may differ.
    """

    pipeline_id: str
    record: Parity
    nodes: tuple[tuple[str, NumericClass], ...]
    differences: tuple[Difference, ...]
    is_promised: bool

    @property
    def tokens_equal(self) -> int:
        """Number of tokens equal to the record's."""
        return self.record.num_tokens - len(self.differences)

    @property
    def ok(self) -> bool:
        """Whether no token differs, or differences are allowed."""
        return not (self.differences and self.is_promised)

    @property
    def promise(self) -> str:
        """State in a sentence whether these machines must reproduce the record's tokens, and if not, why."""
        return promise([self.record.numeric_class, *(known for _, known in self.nodes)], is_promised=self.is_promised)


def verify_run(pipeline: str | Path | HeadSettings, watcher: Watcher = SILENT) -> RunVerification:
    """Feed a parity record's ids to the nodes and compare the tokens they choose.

    Args:
        pipeline: Its folder or Hub id, or all settings of the head that asks its nodes.
        watcher: Told of the chain, and how far it is.

    Raises:
        UsageError: The pipeline has no record.
        As `start_head`.
    """
    settings = HeadSettings.of(pipeline)
    target = open_target(settings.pipeline, settings.cache_dir, watcher)
    records = target.records()
    if not records:
        raise UsageError(
            f"{settings.pipeline} does not have a parity record to compare with.",
            hint=f"Make one where the whole model fits: shardhub verify {settings.pipeline} --reference",
        )
    with LoopThread() as loop:
        head = start_head(loop, settings, watcher)
        try:
            classes = _classes(head)
            record = _closest(records, [known for _, known in classes])
            chosen = _replay(loop, head, record, watcher)
            max_chunk = head.chain.max_chunk
        finally:
            watcher.doing("")
            loop.wait(head.stop())
    differences = [
        Difference(prompt=prompt, token=position, recorded=token, chosen=other)
        for prompt, (recorded, others) in enumerate(zip((one.tokens for one in record.prompts), chosen, strict=True))
        for position, (token, other) in enumerate(zip(recorded, others, strict=True))
        if token != other
    ]
    is_one_class = one_class([record.numeric_class, *(known for _, known in classes)])
    return RunVerification(
        pipeline_id=target.pipeline.manifest.pipeline_id,
        record=record,
        nodes=tuple(classes),
        differences=tuple(differences),
        is_promised=is_one_class and record.tokens_equal == record.num_tokens and max_chunk >= record.chunk,
    )


def promise(classes: Sequence[NumericClass], *, is_promised: bool) -> str:
    """State in a sentence whether these machines must reproduce the record's tokens, and if not, why.

    Args:
        classes: Numeric class of the record, then those of the nodes.
    """
    if is_promised:
        return "the same tokens are promised: the record's machine and the nodes round alike"
    differences = dict.fromkeys(filter(None, (difference(classes[0], other) for other in classes[1:])))
    if not differences:
        return "the same tokens are not promised: the record was made in larger chunks, or is itself inexact"
    return (
        "the same tokens are likely but not promised: the split is exact, but the record's machine and the nodes round "
        f"differently, because they differ in {'; '.join(differences)}"
    )


def _classes(head: Head) -> list[tuple[str, NumericClass]]:
    """Name and numeric class of each place of the chain."""
    return [(served.at, numeric_class(served.host)) for served in head.served]


def _closest(records: list[Parity], classes: list[NumericClass]) -> Parity:
    """The newest record of the nodes' own class, or the newest of all."""
    own = [record for record in records if one_class([record.numeric_class, *classes])]
    closest = newest(own or records)
    assert closest is not None
    return closest


def _replay(loop: LoopThread, head: Head, record: Parity, watcher: Watcher) -> list[list[int]]:
    show, done = comparing(watcher), 0

    def step() -> None:
        nonlocal done
        done += 1
        show(done, record.num_tokens)

    async def run() -> list[list[int]]:
        return [
            await greedy_choices(
                head.chain,
                fixed_prompt(index, prompt.length, record.vocab_size),
                prompt.tokens,
                chunk=min(record.chunk, head.chain.max_chunk),
                progress=step,
            )
            for index, prompt in enumerate(record.prompts)
        ]

    return loop.wait(run())
