"""Options that several commands share, in the groups under which the help lists them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.blas import Blas, choose_blas
from shardhub.chain.settings import Recovery
from shardhub.cli.flags import flags
from shardhub.cli.run import print_error
from shardhub.errors import ShardhubError, outcome
from shardhub.limits import MAX_DRAFT
from shardhub.parameters import REPETITION_CONTEXT
from shardhub.threads import check_threads

if TYPE_CHECKING:
    from shardhub.checkpoint.quantisation import Quantisation
    from shardhub.usecases.answer import Sampling
    from shardhub.usecases.cut import Cut
    from shardhub.usecases.parity import ParitySettings
    from shardhub.usecases.start_head import HeadSettings

BLAS_VARIABLE = "SHARDHUB_BLAS"
_BLAS_HELP = "On Linux without a GPU: OpenBLAS, or the slow reference BLAS of MLX's wheel."


def read_blas(choice: Blas) -> Blas:
    """Choose the BLAS while options are parsed: MLX binds to the one loaded when it is imported."""
    # Processes that the command starts use the same BLAS.
    os.environ[BLAS_VARIABLE] = choice
    try:
        check_threads()
        choose_blas(choice)
    except ShardhubError as error:
        print_error(error)
        raise typer.Exit(outcome(error).exit) from error
    return choice


BlasOption = Annotated[
    Blas, typer.Option("--blas", envvar=BLAS_VARIABLE, show_envvar=True, callback=read_blas, help=_BLAS_HELP)
]
# Without loading the BLAS, for a command that checks whether it can be loaded.
BlasChoice = Annotated[Blas, typer.Option("--blas", envvar=BLAS_VARIABLE, show_envvar=True, help=_BLAS_HELP)]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Model: a Hub id ORG/NAME[@REVISION], its URL, or a folder.")
]
CacheDir = Annotated[
    Path | None, typer.Option("--cache-dir", help="The cache's folder; also SHARDHUB_CACHE.", metavar="DIR")
]
CacheLimit = Annotated[
    str | None,
    typer.Option(
        "--cache-limit",
        help="Size beyond which the shards used longest ago are deleted; unlimited by default.",
        metavar="SIZE",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(help="Memory budget, such as 12GB; by default what this machine can spare.", metavar="SIZE"),
]
RunContext = Annotated[
    int | None,
    typer.Option(
        "--context", help="Positions of a session, prompt and answer; by default the model's own, as memory allows."
    ),
]
SignKey = Annotated[
    Path | None,
    typer.Option("--sign-key", help="Sign the manifest with this key; `certs keygen` makes one.", metavar="FILE"),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Answer all questions with yes.")]
Tls = Annotated[
    Path | None,
    typer.Option(
        "--tls",
        envvar="SHARDHUB_TLS",
        show_envvar=True,
        help="Folder of certificates, also used on loopback; not needed for the folder that `certs join` fills.",
        metavar="DIR",
    ),
]
RequireSignature = Annotated[
    str | None,
    typer.Option("--require-signature", help="Refuse a pipeline not signed with this public key.", metavar="KEY|FILE"),
]
AllowSleep = Annotated[bool, typer.Option("--allow-sleep", help="Let a Mac on mains power sleep while this runs.")]
Node = Annotated[
    list[str] | None,
    typer.Option(
        help="Address of a node, in any order; repeatable; also SHARDHUB_NODES and nodes.toml.", metavar="HOST:PORT"
    ),
]
InsecureLan = Annotated[
    bool, typer.Option("--insecure-lan", help="Reach nodes on other machines without TLS, on a network you trust.")
]
NoLocal = Annotated[bool, typer.Option("--no-local", help="Never run a stage in this process.")]
PrefillChunk = Annotated[
    int | None,
    typer.Option(
        "--prefill-chunk",
        help="Ids of a prompt's chunks; by default sized by their time to compute and to send.",
        min=1,
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of the draws; random by default.", min=0)]
System = Annotated[str | None, typer.Option(help="System prompt; none by default.")]


@flags("Where to cut (one of the first four)")
class CutFlags:
    """Where a model is cut."""

    stages: Annotated[
        int | None, typer.Option(help="Number of stages, balanced by the bytes each reads per token.")
    ] = None
    cuts: Annotated[str | None, typer.Option(help="Layers before which to cut: 10,20.", metavar="L,L,...")] = None
    machine: Annotated[
        list[str] | None,
        typer.Option(
            help="A machine and its memory: mac=64GB, or mini=here for this one; repeatable, in order.",
            metavar="NAME=RAM",
        ),
    ] = None
    plan: Annotated[Path | None, typer.Option("--plan", help="A plan written by `shardhub plan --json`.")] = None
    context: Annotated[
        int | None,
        typer.Option(help="Positions to keep KV for, prompt and answer; by default 8192, or the model's own if less."),
    ] = None

    def cut(self) -> Cut:
        """Where to cut.

        Raises:
            PlanError: The layers are not a list of whole numbers.
        """
        from shardhub.planning.cutting import parse_cuts
        from shardhub.usecases.cut import Cut

        return Cut(
            stages=self.stages,
            cuts=None if self.cuts is None else parse_cuts(self.cuts),
            machines=tuple(self.machine or ()),
            plan=self.plan,
            context=self.context,
        )


@flags("Quantising a model of floats on the way (as mlx_lm.convert does)")
class QuantiseFlags:
    """How a model's weights are quantised while it is split."""

    q_bits: Annotated[
        int | None,
        typer.Option("--q-bits", help="Bits per weight: 2, 3, 4, 5, 6 or 8; by default the mode's own, 4 for affine."),
    ] = None
    q_group_size: Annotated[
        int | None,
        typer.Option(
            "--q-group-size",
            help="Number of weights that share a scale; by default the mode's own, 64 for affine.",
        ),
    ] = None
    q_mode: Annotated[
        str | None,
        typer.Option("--q-mode", help="Mode: affine (the default), mxfp4, nvfp4 or mxfp8.", metavar="MODE"),
    ] = None
    q_recipe: Annotated[
        str | None,
        typer.Option(
            "--q-recipe",
            help="Recipe of mixed bits: mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6; it decides each module's bits.",
            metavar="RECIPE",
        ),
    ] = None

    def quantisation(self) -> Quantisation | None:
        """How to quantise; None if none of these options is given.

        Raises:
            UsageError: They cannot be combined.
        """
        from shardhub.checkpoint.quantisation import Quantisation

        if (self.q_bits, self.q_group_size, self.q_mode, self.q_recipe) == (None, None, None, None):
            return None
        return Quantisation(
            bits=self.q_bits, group_size=self.q_group_size, mode=self.q_mode or "affine", recipe=self.q_recipe
        )


@flags("Models that need a decision")
class ModelFlags:
    """Which parts of a model may be ignored."""

    ignore_code: Annotated[
        bool,
        typer.Option(
            "--ignore-code",
            help="Accept a model whose repo has code of its own (auto_map, .py), and leave that code out.",
        ),
    ] = False
    ignore_field: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore-field",
            help="Ignore this field of config.json, which mlx-lm never reads and which changes numbers; repeatable.",
            metavar="NAME",
        ),
    ] = None

    @property
    def ignore_fields(self) -> tuple[str, ...]:
        """Names of the ignored fields."""
        return tuple(self.ignore_field or ())


@flags("What is checked")
class CheckFlags:
    """What is checked before shards are written."""

    check_weights: Annotated[
        bool,
        typer.Option("--check-weights", help="Refuse NaN and infinite weights; a push then reads all weights first."),
    ] = False
    no_parity: Annotated[
        bool,
        typer.Option("--no-parity", help="Do not compare the stages with the whole model to record their numbers."),
    ] = False
    allow_inexact: Annotated[
        bool,
        typer.Option(
            "--allow-inexact",
            help="Go on if the stages' numbers differ from the whole model's; manifest, cards and nodes then say so.",
        ),
    ] = False
    memory: Memory = None
    sign_key: SignKey = None

    def parity(self) -> ParitySettings:
        """Whether the stages are compared with the whole model."""
        from shardhub.usecases.parity import ParitySettings

        return ParitySettings(skip=self.no_parity, memory=self.memory, allow_inexact=self.allow_inexact)


@flags("Cache")
class CacheFlags:
    """The folder of the cache."""

    cache_dir: CacheDir = None


@flags("Nodes")
class NodeFlags:
    """The nodes, and how they are reached."""

    node: Node = None
    tls: Tls = None
    insecure_lan: InsecureLan = False
    require_signature: RequireSignature = None


@flags("This machine's part")
class LocalFlags:
    """What runs in this process."""

    no_local: NoLocal = False
    context: RunContext = None
    memory: Memory = None
    cache_dir: CacheDir = None
    blas: BlasOption = Blas.AUTO


@flags("Lost nodes and long prompts")
class RecoveryFlags:
    """What happens when a node is lost, and how prompts are cut."""

    recover: Annotated[
        Recovery,
        typer.Option("--recover", help="When a node is lost: recompute in the same steps, in large ones, or end."),
    ] = Recovery.EXACT
    recover_wait: Annotated[float, typer.Option("--recover-wait", help="Seconds to wait for another node.", min=0)] = (
        60.0
    )
    prefill_chunk: PrefillChunk = None


@flags("Tokens")
class SamplingFlags:
    """How tokens are chosen, and when an answer ends."""

    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 256
    temp: Annotated[float, typer.Option(help="Temperature; 0 takes the most likely token.", min=0.0)] = 0.0
    top_p: Annotated[
        float, typer.Option(help="Draw from the fewest most likely tokens with this total probability.")
    ] = 1.0
    top_k: Annotated[int, typer.Option(help="Keep this many most likely tokens; 0 keeps all.", min=0)] = 0
    min_p: Annotated[float, typer.Option(help="Keep tokens at least this likely, relative to the most likely one.")] = (
        0.0
    )
    repetition_penalty: Annotated[
        float,
        typer.Option("--repetition-penalty", help=f"Penalty on the last {REPETITION_CONTEXT} tokens; 1 turns it off."),
    ] = 1.0
    seed: Seed = None
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; repeatable.")] = None
    draft: Annotated[
        int,
        typer.Option(
            "--draft",
            help="Number of tokens to guess at once from earlier text and verify in one pass; for slow networks.",
            min=0,
            max=MAX_DRAFT,
        ),
    ] = 0

    def sampling(self) -> Sampling:
        """How tokens are chosen.

        Raises:
            UsageError: A value is out of range; it is refused before anything is started.
        """
        from shardhub.usecases.answer import Sampling

        sampling = Sampling(
            max_tokens=self.max_tokens,
            temperature=self.temp,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=tuple(self.stop or ()),
            draft=self.draft,
        )
        sampling.parameters()
        return sampling


def head_settings(
    pipeline: str,
    nodes: NodeFlags,
    local: LocalFlags,
    *,
    recovery: RecoveryFlags | None = None,
    insecure_flag: str = "`insecure_lan`",
) -> HeadSettings:
    """The pipeline to run, and where it runs."""
    from shardhub.usecases.start_head import HeadSettings

    recovery = recovery or RecoveryFlags()
    return HeadSettings(
        pipeline=pipeline,
        nodes=tuple(nodes.node or ()),
        allow_local=not local.no_local,
        context=local.context,
        memory=local.memory,
        cache_dir=local.cache_dir,
        tls=nodes.tls,
        insecure_lan=nodes.insecure_lan,
        insecure_flag=insecure_flag,
        require_signature=nodes.require_signature,
        recovery=recovery.recover,
        recover_wait_s=recovery.recover_wait,
        prefill_chunk=recovery.prefill_chunk,
    )
