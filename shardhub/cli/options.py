"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardhub.parameters import REPETITION_CONTEXT

Model = Annotated[str, typer.Argument(help="Model: a Hub id ORG/NAME[@REVISION], or a folder.")]
Stages = Annotated[int | None, typer.Option(help="Number of stages, balanced by the bytes each reads per token.")]
Cuts = Annotated[str | None, typer.Option(help="Layers before which to cut: 10,20.", metavar="L,L,...")]
Machine = Annotated[
    list[str] | None,
    typer.Option(help="A machine and its memory: mac=64GB. Give one for each, in order.", metavar="NAME=RAM"),
]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="A plan written by `shardhub plan --json`.")]
Context = Annotated[int | None, typer.Option(help="Positions of a session, prompt and answer, to keep KV for.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Answer questions with yes.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and logs.")]
Memory = Annotated[str | None, typer.Option(help="Memory to stay within, such as 12GB.", metavar="SIZE")]
PipelineArgument = Annotated[
    str | None, typer.Argument(metavar="PIPELINE", help="Pipeline: a Hub id ORG/NAME[@REVISION], or a folder.")
]
ManifestOption = Annotated[str | None, typer.Option("--manifest", help="The same, by name.")]
Node = Annotated[
    list[str] | None,
    typer.Option(help="Address of a node, any order; also SHARDHUB_NODES and nodes.toml.", metavar="HOST:PORT"),
]
NoLocal = Annotated[bool, typer.Option("--no-local", help="Never run a stage in this process.")]
MaxTokens = Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)]
Temp = Annotated[float, typer.Option(help="Temperature; 0 takes the most likely token.", min=0.0)]
TopP = Annotated[float, typer.Option(help="Keep the most likely tokens with this mass.")]
TopK = Annotated[int, typer.Option(help="Keep this many most likely tokens; 0 keeps all.", min=0)]
MinP = Annotated[float, typer.Option(help="Keep tokens at least this likely, relative to the most likely one.")]
Penalty = Annotated[
    float, typer.Option("--repetition-penalty", help=f"Penalty on the last {REPETITION_CONTEXT} tokens; 1 is none.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of the draws; random by default.", min=0)]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be given several times.")]
System = Annotated[str | None, typer.Option(help="System prompt.")]
