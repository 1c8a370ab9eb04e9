"""The commands that cut a model and publish its shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import CacheDir, CheckFlags, CutFlags, Model, ModelFlags, Yes


@flags("What is checked")
class ProofFlags:
    """Whether a plan is proven."""

    no_proof: Annotated[bool, typer.Option("--no-proof", help="Only the table: check neither cuts nor proof.")] = False


def plan(
    model: Model,
    cut: CutFlags,
    proof: ProofFlags,
    leaving: ModelFlags,
    output: Output,
) -> int:
    """Show how a model would be cut, whether that is proven, and where else it can be cut, from headers only.

    Writes nothing and reads no weights.
    """
    from shardhub.cli.plan import plan as command
    from shardhub.usecases.plan import PlanSettings

    settings = PlanSettings(
        proof=not proof.no_proof, ignore_code=leaving.ignore_code, ignore_fields=leaving.ignore_fields
    )
    return command(model, cut.cut(), settings, as_json=output.as_json)


@flags("What is written")
class SplitFlags:
    """Which shards are written, and under what name."""

    only: Annotated[int | None, typer.Option(help="Write the shard of this stage only.", min=0, metavar="K")] = None
    name: Annotated[str | None, typer.Option(help="Base name of the shards; the model's by default.")] = None


def split(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder in which the shards' folders are written.")],
    cut: CutFlags,
    writing: SplitFlags,
    checks: CheckFlags,
    leaving: ModelFlags,
    output: Output,
) -> int:
    """Cut a model into shard folders, proven to compute what the whole model computes.

    To finish an interrupted run, run the same command again.
    """
    from shardhub.cli.split import split as command
    from shardhub.usecases.split import SplitSettings

    settings = SplitSettings(
        only=writing.only,
        name=writing.name,
        check_weights=checks.check_weights,
        parity=checks.parity(),
        sign_key=checks.sign_key,
        ignore_code=leaving.ignore_code,
        ignore_fields=leaving.ignore_fields,
    )
    return command(model, out, cut.cut(), settings, as_json=output.as_json)


@flags("Where it is published")
class PublishFlags:
    """Where shards are published, and who may read them."""

    namespace: Annotated[
        str | None, typer.Option(help="User or organisation to publish as; the token's by default.", metavar="USER")
    ] = None
    name: Annotated[str | None, typer.Option(help="Base name of the repos; the model's by default.")] = None
    private: Annotated[bool, typer.Option("--private", help="Create repos that only you can read.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be published; write nothing.")] = False
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace other cuts of this name; the old commits stay, tagged.")
    ] = False
    yes: Yes = False
    cache_dir: CacheDir = None


def split_and_push(
    model: Model,
    cut: CutFlags,
    publishing: PublishFlags,
    checks: CheckFlags,
    leaving: ModelFlags,
    output: Output,
) -> int:
    """Cut a model and publish its stages on the Hub, each in a repo of its own; needs disk space for one weight file.

    To finish an interrupted run, run the same command again; nothing is uploaded twice.
    """
    from shardhub.cli.publish import split_and_push as command
    from shardhub.usecases.publish import PublishSettings

    settings = PublishSettings(
        namespace=publishing.namespace,
        name=publishing.name,
        private=publishing.private,
        replace=publishing.replace,
        assume_yes=publishing.yes,
        check_weights=checks.check_weights,
        cache_dir=publishing.cache_dir,
        parity=checks.parity(),
        sign_key=checks.sign_key,
        ignore_code=leaving.ignore_code,
        ignore_fields=leaving.ignore_fields,
    )
    return command(model, cut.cut(), settings, dry_run=publishing.dry_run, as_json=output.as_json)


@flags("What is deleted")
class UnpublishFlags:
    """Whether anything is deleted."""

    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted; delete nothing.")] = False
    yes: Yes = False


def unpublish(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="Its repo: USER/NAME-pipeline.")],
    deleting: UnpublishFlags,
    output: Output,
) -> int:
    """Delete a pipeline from the Hub: first its manifest, then the shards that no other pipeline names."""
    from shardhub.cli.publish import unpublish as command

    return command(pipeline, dry_run=deleting.dry_run, yes=deleting.yes, as_json=output.as_json)
