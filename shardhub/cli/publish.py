"""`shardhub split-and-push` and `shardhub unpublish`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shardhub.errors import UsageError
from shardhub.hub.cache import Cache
from shardhub.hub.calls import HubCalls
from shardhub.hub.publish import Published, publish
from shardhub.hub.push_decisions import Action
from shardhub.hub.push_journal import PushJournal
from shardhub.hub.push_plan import PushPlan, plan_push
from shardhub.hub.push_weights import check_weights
from shardhub.hub.reference import parse_reference
from shardhub.hub.unpublish import Removal, find_removal, remove
from shardhub.naming import check_model_name, check_namespace
from shardhub.parity import Numbers
from shardhub.sizes import size_text
from shardhub.splitting.job import SplitJob, prepare
from shardhub.splitting.source_card import Value, reservations, source_fields
from shardhub.usecases.cut import CutOptions, decide_and_prove
from shardhub.usecases.parity import ParityOptions, measure_split, parity_report, settle_numbers, twin_findings
from shardhub.usecases.places import Model, base_name, hub, open_model
from shardhub.usecases.signing import signer_of
from shardhub.usecases.terminal import note
from shardhub.usecases.tokenizer import with_tokenizer

if TYPE_CHECKING:
    from shardhub.hub.push_weights import PushProgress

# A home connection, for the estimate.
_BYTES_PER_S = 100e6 / 8
# Progress lines into a pipe: one each time this share is done.
_REPORT_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """Where and how to publish; see the command's help."""

    namespace: str | None
    name: str | None
    private: bool
    dry_run: bool
    replace: bool
    yes: bool
    check_weights: bool
    cache_dir: Path | None
    parity: ParityOptions
    as_json: bool
    sign_key: Path | None = None
    ignore_code: bool = False
    ignore_fields: tuple[str, ...] = ()


def split_and_push(model: str, cut: CutOptions, options: PushOptions) -> int:
    """Publish a model's stages, each to a repo of its own, and the manifest last."""
    if options.name is not None:
        check_model_name(options.name)
    if options.namespace is not None:
        check_namespace(options.namespace)
    signer = signer_of(options.sign_key)
    calls = HubCalls(api=hub(), notice=note)
    account = calls.writer()
    opened = open_model(
        model, ignore_code=options.ignore_code, ignore_fields=options.ignore_fields, context=cut.context
    )
    opened = with_tokenizer(opened, ignore_code=options.ignore_code)
    name = base_name(opened, options.name)
    checkpoint = opened.checkpoint
    contents, stages = decide_and_prove(checkpoint, cut)
    work = Cache(options.cache_dir).root / "push"
    job = prepare(
        checkpoint,
        contents,
        stages,
        work / "folders",  # of which only the names are used
        name=name,
        source=opened.source,
        namespace=check_namespace(options.namespace or account.name),
    )
    journal = PushJournal(work, checked=options.check_weights)
    gate = _gate(opened, calls)
    fields = source_fields(checkpoint.folder)
    plan = plan_push(job, calls, journal, private=options.private, gate=gate, replace=options.replace)
    _show(plan)
    reasons = reservations(fields, gated=gate is not None) if plan.is_public else []
    if options.dry_run:
        for reason in reasons:
            note(f"note: everyone could read it, but {reason}: add --private, or --yes to mean it")
        if options.as_json:
            print(json.dumps(_plan_record(plan, reasons)))
        else:
            note("dry run: nothing was written")
        return 0
    if reasons and not options.yes:
        _ask_publicly(reasons, fields)
    start = time.monotonic()
    if options.check_weights:
        check_weights(job, journal, _progress())
    if _is_published(plan):
        numbers = Numbers(not_run="all of it was published already")
    else:
        numbers = measure_split(checkpoint, contents, stages, opened.source, options.parity)
    inexact = settle_numbers(
        numbers,
        _recorded(plan) if numbers.parity is None else None,
        where=checkpoint.where,
        stages=stages,
        allow_inexact=options.parity.allow_inexact,
        others=twin_findings(contents),
    )
    job = replace(job, numbers=numbers, inexact=inexact, signer=signer)
    plan = replace(plan, job=job)
    done = publish(plan, calls, journal, work, progress=_progress())
    _report(done, job, time.monotonic() - start, as_json=options.as_json)
    return 0


def unpublish(pipeline: str, *, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Delete a pipeline's repos at the Hub."""
    place = parse_reference(pipeline)
    if isinstance(place, Path):
        raise UsageError(f"{pipeline} is a folder.", why="Only what is on a Hub is unpublished.", hint="Give ORG/NAME.")
    calls = HubCalls(api=hub(), notice=note)
    calls.writer()
    removal = find_removal(calls, place.repo)
    doomed = [*([removal.pipeline] if removal.pipeline else []), *removal.shards]
    for repo in doomed:
        note(f"delete  {repo}")
    for kept in removal.kept:
        note(f"keep    {kept.repo}: {kept.why}")
    if not dry_run:
        if not yes:
            _ask(f"Delete these repos ({len(doomed)}) at {calls.api.endpoint}, for good?", "Nothing was deleted.")
        remove(calls, removal, progress=lambda repo: note(f"deleting {repo}"))
    if as_json:
        print(json.dumps(_removal_record(removal, deleted=not dry_run)))
    else:
        note("dry run: nothing was deleted" if dry_run else f"{len(doomed)} repos deleted")
    return 0


def _is_published(plan: PushPlan) -> bool:
    """Whether all of it is at the Hub, as far as is known before a weight is read."""
    at = plan.pipeline
    has_manifest = at.action is not Action.REPLACE and at.remote is not None and at.remote.manifest is not None
    return has_manifest and all(shard.action is Action.KEEP for shard in plan.shards)


def _recorded(plan: PushPlan) -> str | None:
    """What the manifest that is there says is inexact; one that is replaced says nothing of this cut."""
    at = plan.pipeline
    manifest = at.remote.manifest if at.remote is not None and at.action is not Action.REPLACE else None
    return manifest.inexact if manifest is not None else None


def _gate(model: Model, calls: HubCalls) -> str | None:
    """What readers of the source's repo have to do: `auto`, `manual` or None."""
    repo = model.source.repo
    if repo is None:
        return None
    info = calls.run(
        lambda: calls.api.model_info(repo, revision=model.source.commit),
        what=f"asking whether {repo} is gated",
        repo=repo,
        revision=model.source.commit,
    )
    return info.gated if isinstance(info.gated, str) else None


def _show(plan: PushPlan) -> None:
    """The repos a push writes, their sizes, and how long it may take."""
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


def _ask_publicly(reasons: list[str], fields: dict[str, Value]) -> None:
    for reason in reasons:
        note(f"Everyone will be able to read it, but {reason}.")
    if link := fields.get("license_link"):
        note(f"Its licence: {str(link)[:200]}")
    if not sys.stdin.isatty():
        raise UsageError(
            "The model is not published to everyone without being asked.",
            why=f"{reasons[0][:1].upper()}{reasons[0][1:]}.",
            hint="Add --private, or --yes if you may publish it.",
        )
    _ask("May you publish it, and do you want to?", "Nothing was published; --private publishes it to you alone.")


def _ask(question: str, refusal: str) -> None:
    """Ask on a terminal; anything but yes, and no terminal, is no.

    Raises:
        UsageError: The answer was no, or nobody could be asked.
    """
    if not sys.stdin.isatty():
        raise UsageError(refusal, why="There is no terminal to ask on.", hint="Add --yes to mean it.")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise UsageError(refusal, why="The answer was not yes.")


def _report(done: Published, job: SplitJob, seconds: float, *, as_json: bool) -> None:
    if as_json:
        record = {
            "shards": [
                {"repo": at.repo, "commit": at.commit, "stage_digest": digest, "action": at.action.value}
                for at, digest in zip(done.shards, done.stage_digests, strict=True)
            ],
            "pipeline": {"repo": done.pipeline.repo, "commit": done.pipeline.commit, "action": done.pipeline.action},
            "pipeline_id": done.pipeline_id,
            "parity": parity_report(job.numbers),
            "inexact": job.inexact,
            "uploaded_bytes": done.uploaded_bytes,
            "copied_bytes": done.given_bytes,
            "seconds": round(seconds, 3),
        }
        print(json.dumps(record))
        return
    for at in (*done.shards, done.pipeline):
        print(at.repo + (f"  ({at.action.value})" if at.action is Action.KEEP else ""))
    note(
        f"done in {seconds:.1f} s: {size_text(done.uploaded_bytes)} uploaded, {size_text(done.given_bytes)} "
        f"copied at the Hub, {size_text(sum(shard.size_bytes for shard in job.shards))} in all"
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


def _progress() -> Callable[[PushProgress], None]:
    """A line for what is being done; while a file goes up, the client's own bar shows how far it is."""
    is_terminal = sys.stderr.isatty()
    if not is_terminal:
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    shown_share, shown_line, start = 0.0, "", time.monotonic()

    def show(state: PushProgress) -> None:
        nonlocal shown_share, shown_line
        share = state.done_bytes / max(1, state.total_bytes)
        if not is_terminal:
            if share - shown_share >= _REPORT_SHARE:
                note(f"{share:.0%} of {size_text(state.total_bytes)}")
                shown_share = share
            return
        left_s = (time.monotonic() - start) / share * (1 - share) if share > 0 else 0.0
        line = f"{share:6.1%}  {left_s / 60:4.0f} min left  {state.activity} {state.file} for {state.repo}"
        if state.activity != "done" and line != shown_line:
            sys.stderr.write(f"\r\x1b[K{line[:110]}" + ("\n" if state.activity == "uploading" else ""))
            sys.stderr.flush()
            shown_line = line

    return show
