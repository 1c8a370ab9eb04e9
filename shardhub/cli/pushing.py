"""Pushes on the command line: what a push will do, and what it did."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.flags import flags
from shardhub.cli.options import CacheDir, Yes
from shardhub.cli.terminal import note
from shardhub.sizes import size_text

if TYPE_CHECKING:
    from shardhub.hub.push_plan import PushPlan
    from shardhub.usecases.push import Publication, Push

# Upload rate of a home connection, for the estimate.
_BYTES_PER_S = 100e6 / 8


@flags("Where it is published")
class PushFlags:
    """Where shards are published, and who may read them."""

    namespace: Annotated[
        str | None, typer.Option(help="User or organisation to publish as; the token's by default.", metavar="USER")
    ] = None
    name: Annotated[str | None, typer.Option(help="Base name of the repos; the model's by default.")] = None
    by_reference: Annotated[
        bool,
        typer.Option("--by-reference", help="Upload no weights: nodes fetch them from the model's own repo."),
    ] = False
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Create repos that only you, or everyone, can read; by default private if the model's own repo is.",
        ),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be published; write nothing.")] = False
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace other cuts of this name; the old commits stay, tagged.")
    ] = False
    yes: Yes = False
    cache_dir: CacheDir = None


def run_push(push: Push, *, dry_run: bool, as_json: bool) -> int:
    """Show what a push will do, do it unless this is a dry run, and report; returns the exit code."""
    _show(push.plan)
    if push.follows:
        note(f"{push.follows} is private, so its shards and pipeline will be, too; --public shows them to everyone")
    if not dry_run:
        _report(push.run(), as_json=as_json)
        return 0
    for reason in push.reasons:
        note(f"note: everyone could read it, but {reason}: add --private, or --yes to confirm")
    if as_json:
        print(json.dumps(_plan_record(push.plan, push.reasons)))
    else:
        note("dry run: nothing was written")
    return 0


def _show(plan: PushPlan) -> None:
    """Show the repos that a push writes, their sizes, and the estimated time."""
    from shardhub.hub.push_decisions import Action

    job = plan.job
    width = max(len(at.repo) for at in plan.decisions)
    sizes = [*(shard.size_bytes for shard in job.shards), job.files_bytes]
    for at, size in zip(plan.decisions, sizes, strict=True):
        private = plan.private if at.remote is None else at.remote.private
        state = at.action.value + (f" ({at.why})" if at.why else "")
        note(f"{at.repo:<{width}}  {size_text(size):>10}  {'private' if private else 'public':<7}  {state}")
    if any(at.action is Action.REPLACE for at in plan.decisions):
        note("replaced commits are kept under a tag: manifests that name them keep working")
    minutes = plan.upload_bytes / _BYTES_PER_S / 60
    note(
        f"{size_text(sum(sizes))} in all, at most {size_text(plan.upload_bytes)} of weights to upload"
        + (f": about {minutes:.0f} min at 100 Mbit/s" if minutes >= 1 else "")
    )
    if job.by_reference:
        note(f"published by reference: nodes fetch the weights from {job.source_name}")
    if plan.largest_bytes:
        note(f"disk space needed during the push: {size_text(plan.largest_bytes)}")


def _report(made: Publication, *, as_json: bool) -> None:
    from shardhub.hub.push_decisions import Action
    from shardhub.usecases.parity import parity_report

    done = made.pushed
    if as_json:
        record = {
            "shards": [
                {"repo": at.repo, "commit": at.commit, "stage_digest": digest, "action": at.action.value}
                for at, digest in zip(done.shards, done.stage_digests, strict=True)
            ],
            "pipeline": {"repo": done.pipeline.repo, "commit": done.pipeline.commit, "action": done.pipeline.action},
            "pipeline_id": done.pipeline_id,
            "parity": parity_report(made.numbers),
            "inexact": made.inexact,
            "uploaded_bytes": done.uploaded_bytes,
            "copied_bytes": done.given_bytes,
            "seconds": round(made.duration_s, 3),
        }
        print(json.dumps(record))
        return
    for at in (*done.shards, done.pipeline):
        print(at.repo + (f"  ({at.action.value})" if at.action is Action.KEEP else ""))
    note(
        f"done in {made.duration_s:.1f} s: {size_text(done.uploaded_bytes)} of weights uploaded, "
        f"{size_text(done.given_bytes)} copied on the Hub, {size_text(made.size_bytes)} in all"
    )
    note(f"Serve each stage, each on its machine:  shardhub serve {done.shards[0].repo} [--host ADDRESS]")
    note(f"Then generate:  shardhub generate --manifest {done.pipeline.repo} --node HOST:PORT ... --prompt ...")


def _plan_record(plan: PushPlan, reasons: list[str]) -> dict[str, object]:
    return {
        "dry_run": True,
        "repos": [
            {
                "repo": at.repo,
                "action": at.action.value,
                "private": plan.private if at.remote is None else at.remote.private,
            }
            for at in plan.decisions
        ],
        "size_bytes": [shard.size_bytes for shard in plan.job.shards],
        "upload_bytes": plan.upload_bytes,
        "reasons_not_to_publish": reasons,
    }
