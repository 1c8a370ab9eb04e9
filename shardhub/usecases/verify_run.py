"""`shardhub verify --run`: a record's prompts again, on the live chain."""

from __future__ import annotations

import json
from collections.abc import Sequence

from shardhub.chain.head import Head
from shardhub.chain.teacher_forcing import greedy_choices
from shardhub.errors import UsageError
from shardhub.manifest import NumericClass, Parity
from shardhub.parity import describe_class, difference, fixed_prompt, newest, numeric_class, one_class
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.parity import progress_of
from shardhub.usecases.start_head import HeadOptions, start_head
from shardhub.usecases.terminal import Status, note
from shardhub.usecases.verify_target import EXIT_DIFFERENT, open_target


def verify_run(options: HeadOptions, pipeline: str, *, as_json: bool) -> int:
    """Feed the record's ids to the nodes and compare what they choose; 3 if they differ though they must not."""
    target = open_target(pipeline, options.cache_dir)
    records = target.records()
    if not records:
        raise UsageError(
            f"{pipeline} has no parity record to compare with.",
            hint=f"Make one where the whole model fits: shardhub verify {pipeline} --reference",
        )
    with LoopThread() as loop:
        head = start_head(loop, options)
        status = Status()
        try:
            classes = _classes(head)
            record = _closest(records, [found for _, found in classes])
            chosen = _replay(loop, head, record, status)
            max_chunk = head.chain.max_chunk
        finally:
            status.clear()
            loop.wait(head.stop())
    expected = [list(prompt.tokens) for prompt in record.prompts]
    wrong = [
        (prompt, position, known, found)
        for prompt, (knowns, founds) in enumerate(zip(expected, chosen, strict=True))
        for position, (known, found) in enumerate(zip(knowns, founds, strict=True))
        if known != found
    ]
    num_equal = record.num_tokens - len(wrong)
    is_one_class = one_class([record.numeric_class, *(found for _, found in classes)])
    is_promised = is_one_class and record.tokens_equal == record.num_tokens and max_chunk >= record.chunk
    first = (
        ""
        if not wrong
        else f"first difference: prompt {wrong[0][0]}, token {wrong[0][1]}: the record has {wrong[0][2]}, "
        f"the chain chose {wrong[0][3]}"
    )
    if as_json:
        result = {
            "pipeline_id": target.pipeline.manifest.pipeline_id,
            "num_tokens": record.num_tokens,
            "tokens_equal": num_equal,
            "first_difference": dict(zip(("prompt", "token", "recorded", "chosen"), wrong[0], strict=True))
            if wrong
            else None,
            "exactness_promised": is_promised,
            "record": {"made_at": record.made_at, "class": record.numeric_class.model_dump()},
            "nodes": [{"at": name, "class": found.model_dump()} for name, found in classes],
        }
        print(json.dumps(result))
    else:
        width = max(len(name) for name, _ in (("record", record.numeric_class), *classes))
        for name, found in (("record", record.numeric_class), *classes):
            print(f"{name:<{width}}  {describe_class(found)}, {found.cpu or 'cpu unknown'}, {found.blas or 'no BLAS'}")
        print(promise([record.numeric_class, *(known for _, known in classes)], is_promised=is_promised))
        print(f"{num_equal} of {record.num_tokens} tokens are the record's")
        if first:
            print(first)
    if wrong and not is_promised:
        note("note: this is how far the machines agree; other hardware or libraries round differently")
    return EXIT_DIFFERENT if wrong and is_promised else 0


def promise(classes: Sequence[NumericClass], *, is_promised: bool) -> str:
    """Whether the record's tokens must come again on these machines, and why not, in a sentence.

    Args:
        classes: The record's first, then the nodes'.
    """
    if is_promised:
        return "the same tokens are promised: record and nodes compute alike"
    differences = dict.fromkeys(filter(None, (difference(classes[0], other) for other in classes[1:])))
    if not differences:
        return "the same tokens are not promised: the record was made in larger chunks, or is itself inexact"
    return (
        "the same tokens are likely but not promised: the split is exact, but the record's machine and the nodes round "
        f"differently, as they differ in {'; '.join(differences)}"
    )


def _classes(head: Head) -> list[tuple[str, NumericClass]]:
    """Numeric class of each place of the chain, by its name."""
    return [(served.at, numeric_class(served.host)) for served in head.served]


def _closest(records: list[Parity], classes: list[NumericClass]) -> Parity:
    """The newest record of the nodes' own class, else the newest."""
    own = [record for record in records if one_class([record.numeric_class, *classes])]
    found = newest(own or records)
    assert found is not None
    return found


def _replay(loop: LoopThread, head: Head, record: Parity, status: Status) -> list[list[int]]:
    show, done = progress_of(status), 0

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
