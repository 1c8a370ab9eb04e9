"""Commands that cut a model and publish its shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardhub.cli.cache import CacheDir
from shardhub.cli.options import (
    AllowInexact,
    CheckWeights,
    Context,
    Cuts,
    Debug,
    IgnoreCode,
    IgnoreField,
    Json,
    Machine,
    Memory,
    Model,
    NoParity,
    PlanFile,
    SignKey,
    Stages,
    Yes,
)
from shardhub.cli.run import run


def plan(
    model: Model,
    stages: Stages = None,
    cuts: Cuts = None,
    machine: Machine = None,
    plan: PlanFile = None,
    no_proof: Annotated[bool, typer.Option("--no-proof", help="Only the table: check neither cuts nor proof.")] = False,
    context: Context = None,
    ignore_code: IgnoreCode = False,
    ignore_field: IgnoreField = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Show how a model would be cut, whether that is proven, and where else it can be cut, from headers alone.

    Writes nothing, and reads no weights.
    """
    from shardhub.cli.plan import plan as command
    from shardhub.usecases.cut import CutOptions

    cut = CutOptions(stages=stages, cuts=cuts, machines=machine or [], plan=plan, context=context)
    run(
        lambda: command(
            model,
            cut,
            proof=not no_proof,
            as_json=json_,
            ignore_code=ignore_code,
            ignore_fields=tuple(ignore_field or ()),
        ),
        debug=debug,
        as_json=json_,
    )


def split(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write the shards' folders into.")],
    stages: Stages = None,
    cuts: Cuts = None,
    machine: Machine = None,
    plan: PlanFile = None,
    only: Annotated[int | None, typer.Option(help="Write this stage's shard only.", min=0, metavar="K")] = None,
    name: Annotated[str | None, typer.Option(help="Base name of the shards; the model's by default.")] = None,
    check_weights: CheckWeights = False,
    no_parity: NoParity = False,
    allow_inexact: AllowInexact = False,
    sign_key: SignKey = None,
    memory: Memory = None,
    context: Context = None,
    ignore_code: IgnoreCode = False,
    ignore_field: IgnoreField = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Cut a model into shard folders, proven to compute what the whole model computes.

    A run that was interrupted is finished by the same command.
    """
    from shardhub.cli.split import split as command
    from shardhub.usecases.cut import CutOptions
    from shardhub.usecases.parity import ParityOptions

    cut = CutOptions(stages=stages, cuts=cuts, machines=machine or [], plan=plan, context=context)
    run(
        lambda: command(
            model,
            out,
            cut,
            only=only,
            name=name,
            check_weights=check_weights,
            parity=ParityOptions(skip=no_parity, memory=memory, allow_inexact=allow_inexact),
            as_json=json_,
            sign_key=sign_key,
            ignore_code=ignore_code,
            ignore_fields=tuple(ignore_field or ()),
        ),
        debug=debug,
        as_json=json_,
    )


def split_and_push(
    model: Model,
    stages: Stages = None,
    cuts: Cuts = None,
    machine: Machine = None,
    plan: PlanFile = None,
    namespace: Annotated[
        str | None, typer.Option(help="User or organisation to publish as; the token's by default.", metavar="USER")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Base name of the repos; the model's by default.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make repos that only you can read.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be made; write nothing.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace other cuts of this name; the old commits stay, tagged.")
    ] = False,
    yes: Yes = False,
    check_weights: CheckWeights = False,
    no_parity: NoParity = False,
    allow_inexact: AllowInexact = False,
    sign_key: SignKey = None,
    memory: Memory = None,
    context: Context = None,
    ignore_code: IgnoreCode = False,
    ignore_field: IgnoreField = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Cut a model and publish its stages on the Hub, each in a repo of its own; needs disk for one weight file.

    A run that was interrupted is finished by the same command, and uploads nothing twice.
    """
    from shardhub.cli.publish import PushOptions
    from shardhub.cli.publish import split_and_push as command
    from shardhub.usecases.cut import CutOptions
    from shardhub.usecases.parity import ParityOptions

    cut = CutOptions(stages=stages, cuts=cuts, machines=machine or [], plan=plan, context=context)
    options = PushOptions(
        namespace=namespace,
        name=name,
        private=private,
        dry_run=dry_run,
        replace=replace,
        yes=yes,
        check_weights=check_weights,
        cache_dir=cache_dir,
        parity=ParityOptions(skip=no_parity, memory=memory, allow_inexact=allow_inexact),
        as_json=json_,
        sign_key=sign_key,
        ignore_code=ignore_code,
        ignore_fields=tuple(ignore_field or ()),
    )
    run(lambda: command(model, cut, options), debug=debug, as_json=json_)


def unpublish(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="Its repo: USER/NAME-pipeline.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted; delete nothing.")] = False,
    yes: Yes = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Delete a pipeline on the Hub: its manifest first, then the shards that no other pipeline names."""
    from shardhub.cli.publish import unpublish as command

    run(lambda: command(pipeline, dry_run=dry_run, yes=yes, as_json=json_), debug=debug, as_json=json_)
