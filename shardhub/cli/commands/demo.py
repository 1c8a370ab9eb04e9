"""`shardhub demo`: every step on one machine, with a real small model and a Hub of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.blas import Blas
from shardhub.cli.flags import Output, flags
from shardhub.cli.options import BlasOption
from shardhub.cli.terminal import Terminal, end_answer, note, write_answer

if TYPE_CHECKING:
    from shardhub.usecases.demo import LeftRunning


@flags("Demo")
class DemoFlags:
    """What the demo leaves behind."""

    keep: Annotated[bool, typer.Option("--keep", help="Leave the nodes running and show what to do next.")] = False
    blas: BlasOption = Blas.AUTO


def demo(running: DemoFlags, output: Output) -> int:
    """Show every step on this machine: a local Hub, a small model, two nodes, text equal to the unsplit model's."""
    from shardhub.usecases.demo import demo as run_demo

    if not output.as_json:
        _explain(run_demo(keep=running.keep, watcher=Terminal(), show=_write).left)
        return 0
    made = run_demo(keep=running.keep, watcher=Terminal())
    record = {
        "text": made.answer.text,
        "tokens": list(made.answer.tokens),
        "unsplit_tokens": list(made.unsplit_tokens),
        "equal": True,
        "parity": made.parity,
        "tokens_per_s": round(made.answer.usage.tokens_per_s, 3),
        "unsplit_tokens_per_s": round(made.unsplit_tokens_per_s, 3),
    }
    print(json.dumps(record, ensure_ascii=False))
    _explain(made.left)
    return 0


def _write(texts: Iterator[str]) -> None:
    for text in texts:
        write_answer(text)
    end_answer()


def _explain(left: LeftRunning | None) -> None:
    """Say what may be done with what is left running, if anything is."""
    if left is None:
        return
    from shardhub.usecases.processes import command_text

    chain = {"manifest": left.pipeline, "node": left.addresses}
    note("")
    note("The Hub and the nodes keep running. Next:")
    for name, value in left.environment.items():
        note(f"  export {name}={value}")
    note(f"  {command_text('generate', **chain, prompt='Tell me a joke')}")
    note(f"  {command_text('chat', **chain)}")
    note("  shardhub ls")
    note(f"  kill {' '.join(map(str, left.process_ids))}    # stops them")
    note(f"  rm -r {left.folder}")
