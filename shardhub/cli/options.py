"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from shardhub.blas import Blas, choose_blas
from shardhub.chain.settings import Recovery
from shardhub.cli.run import print_error
from shardhub.errors import ShardhubError, outcome
from shardhub.parameters import REPETITION_CONTEXT
from shardhub.threads import check_threads


def read_blas(choice: Blas) -> Blas:
    """Choose the BLAS while options are read: MLX binds to what is there when it is imported."""
    # What the command starts computes alike.
    os.environ[BLAS_VARIABLE] = choice
    try:
        check_threads()
        choose_blas(choice)
    except ShardhubError as error:
        print_error(error)
        raise typer.Exit(outcome(error).exit) from error
    return choice


BLAS_VARIABLE = "SHARDHUB_BLAS"
_BLAS_HELP = "On Linux's CPUs: OpenBLAS, or the slow reference BLAS of MLX's wheel."
BlasOption = Annotated[
    Blas, typer.Option("--blas", envvar=BLAS_VARIABLE, show_envvar=True, callback=read_blas, help=_BLAS_HELP)
]
# Without loading it, for a command that looks whether it can be.
BlasChoice = Annotated[Blas, typer.Option("--blas", envvar=BLAS_VARIABLE, show_envvar=True, help=_BLAS_HELP)]
Model = Annotated[str, typer.Argument(help="Model: a Hub id ORG/NAME[@REVISION], or a folder.")]
Stages = Annotated[int | None, typer.Option(help="Number of stages, balanced by the bytes each reads per token.")]
Cuts = Annotated[str | None, typer.Option(help="Layers before which to cut: 10,20.", metavar="L,L,...")]
Machine = Annotated[
    list[str] | None,
    typer.Option(
        help="A machine and its memory: mac=64GB, or mini=here for this one. Give one for each, in order.",
        metavar="NAME=RAM",
    ),
]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="A plan written by `shardhub plan --json`.")]
Context = Annotated[int | None, typer.Option(help="Positions of a session, prompt and answer, to keep KV for.")]
RunContext = Annotated[
    int | None,
    typer.Option(
        "--context", help="Positions of a session, prompt and answer; by default the model's own, as memory allows."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Answer questions with yes.")]
CheckWeights = Annotated[
    bool,
    typer.Option("--check-weights", help="Refuse NaN and infinite weights; a push then reads all of them first."),
]
IgnoreCode = Annotated[
    bool,
    typer.Option(
        "--ignore-code", help="Take a model whose repo has code of its own (auto_map, .py), and leave that code out."
    ),
]
IgnoreField = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-field",
        help="Go on although mlx-lm never reads this field of config.json, with other numbers; repeatable.",
        metavar="NAME",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and logs.")]
Memory = Annotated[str | None, typer.Option(help="Memory to stay within, such as 12GB.", metavar="SIZE")]
NoParity = Annotated[
    bool, typer.Option("--no-parity", help="Do not run the stages against the whole model to record their numbers.")
]
AllowInexact = Annotated[
    bool,
    typer.Option(
        "--allow-inexact", help="Go on where the stages' numbers are not the whole model's; everything then says so."
    ),
]
PipelineArgument = Annotated[
    str | None, typer.Argument(metavar="PIPELINE", help="Pipeline: a Hub id ORG/NAME[@REVISION], or a folder.")
]
ManifestOption = Annotated[str | None, typer.Option("--manifest", help="The same, by name.")]
Recover = Annotated[
    Recovery,
    typer.Option("--recover", help="When a node is lost: compute again in the same steps, in large ones, or end."),
]
RecoverWait = Annotated[float, typer.Option("--recover-wait", help="Seconds to wait for another node.", min=0)]
PrefillChunk = Annotated[
    int | None,
    typer.Option(
        "--prefill-chunk",
        help="Ids of a prompt's chunks; by default sized by what they take to compute and to send.",
        min=1,
    ),
]
Draft = Annotated[
    int,
    typer.Option(
        "--draft",
        help="Guess so many tokens at once from earlier text and verify them in one pass; for slow networks.",
        min=0,
        max=32,
    ),
]
Tls = Annotated[
    Path | None,
    typer.Option(
        "--tls",
        envvar="SHARDHUB_TLS",
        show_envvar=True,
        help="Folder of this machine's certificates, for loopback too; the one `certs join` fills is found by itself.",
        metavar="DIR",
    ),
]
AllowSleep = Annotated[
    bool,
    typer.Option("--allow-sleep", help="Let a Mac on mains power sleep while this runs."),
]
InsecureLan = Annotated[
    bool, typer.Option("--insecure-lan", help="Reach nodes on other machines without TLS, on a network you trust.")
]
SignKey = Annotated[
    Path | None,
    typer.Option("--sign-key", help="Sign the manifest with this key; `certs keygen` makes one.", metavar="FILE"),
]
RequireSignature = Annotated[
    str | None,
    typer.Option(
        "--require-signature", help="Refuse a pipeline that this public key has not signed.", metavar="KEY|FILE.pub"
    ),
]
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
