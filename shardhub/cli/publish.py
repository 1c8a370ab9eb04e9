"""`shardhub split-and-push` and `shardhub unpublish`: publishing a pipeline, and deleting it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from shardhub.cli.terminal import Terminal, ask, note
from shardhub.errors import UsageError
from shardhub.hub.push_decisions import Action
from shardhub.hub.push_plan import PushPlan
from shardhub.hub.unpublish import Removal
from shardhub.sizes import size_text
from shardhub.usecases.cut import Cut
from shardhub.usecases.parity import parity_report
from shardhub.usecases.publish import Publication, PublishSettings, Push, Unpublish

# Upload rate of a home connection, for the estimate.
_BYTES_PER_S = 100e6 / 8


def split_and_push(model: str, cut: Cut, settings: PublishSettings, *, dry_run: bool, as_json: bool) -> int:
    """Show what would be published and, unless `dry_run`, publish it."""
    push = Push(model, cut, replace(settings, client_bars=sys.stderr.isatty()), Terminal())
    _show(push.plan)
    if not dry_run:
        _report(push.run(), as_json=as_json)
        return 0
    for reason in push.reasons:
        note(f"note: everyone could read it, but {reason}: add --private, or --yes to mean it")
    if as_json:
        print(json.dumps(_plan_record(push.plan, push.reasons)))
    else:
        note("dry run: nothing was written")
    return 0


def unpublish(pipeline: str, *, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Delete a pipeline's repos from the Hub."""
    doomed = Unpublish(pipeline, Terminal())
    for repo in doomed.repos:
        note(f"delete  {repo}")
    for kept in doomed.removal.kept:
        note(f"keep    {kept.repo}: {kept.why}")
    if not dry_run:
        if not yes:
            _ask(f"Delete these repos ({len(doomed.repos)}) at {doomed.endpoint}, for good?", "Nothing was deleted.")
        doomed.run()
    if as_json:
        print(json.dumps(_removal_record(doomed.removal, deleted=not dry_run)))
    else:
        note("dry run: nothing was deleted" if dry_run else f"{len(doomed.repos)} repos deleted")
    return 0


def _ask(question: str, refusal: str) -> None:
    """Ask on a terminal; any answer but yes counts as no, and so does a missing terminal.

    Raises:
        UsageError: The answer is no, or there is no terminal.
    """
    answer = ask(question)
    if answer is None:
        raise UsageError(refusal, why="There is no terminal to ask on.", hint="Add --yes to mean it.")
    if not answer:
        raise UsageError(refusal, why="The answer was not yes.")


def _show(plan: PushPlan) -> None:
    """Show the repos that a push writes, their sizes, and the estimated time."""
    job = plan.job
    width = max(len(at.repo) for at in plan.decisions)
    sizes = [*(shard.size_bytes for shard in job.shards), job.files_bytes]
    for at, size in zip(plan.decisions, sizes, strict=True):
        private = plan.private if at.remote is None else at.remote.private
        state = at.action.value + (f" ({at.why})" if at.why else "")
        note(f"{at.repo:<{width}}  {size_text(size):>10}  {'private' if private else 'public':<7}  {state}")
    if any(at.action is Action.REPLACE for at in plan.decisions):
        note("what is replaced stays under a tag: manifests that name those commits keep working")
    minutes = plan.upload_bytes / _BYTES_PER_S / 60
    note(
        f"{size_text(sum(sizes))} in all, at most {size_text(plan.upload_bytes)} of it to upload"
        + (f": about {minutes:.0f} min at 100 Mbit/s" if minutes >= 1 else "")
    )
    largest = max(layout.size_bytes for shard in job.shards for layout in shard.layouts)
    note(f"disk needed meanwhile: {size_text(largest)}")


def _report(made: Publication, *, as_json: bool) -> None:
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
        f"done in {made.duration_s:.1f} s: {size_text(done.uploaded_bytes)} uploaded, "
        f"{size_text(done.given_bytes)} copied at the Hub, {size_text(made.size_bytes)} in all"
    )
    note(f"Serve each stage, on machine after machine:  shardhub serve {done.shards[0].repo} [--host ADDRESS]")
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


def _removal_record(removal: Removal, *, deleted: bool) -> dict[str, object]:
    return {
        "deleted": deleted,
        "pipeline": removal.pipeline,
        "shards": list(removal.shards),
        "kept": [{"repo": kept.repo, "why": kept.why} for kept in removal.kept],
    }
