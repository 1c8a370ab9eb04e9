"""`shardhub unpublish`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.flags import Output, flags
from shardhub.cli.options import Yes
from shardhub.cli.terminal import Terminal, confirm, note

if TYPE_CHECKING:
    from shardhub.hub.unpublish import Removal


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
    from shardhub.usecases.publish import Unpublish

    doomed = Unpublish(pipeline, Terminal())
    for repo in doomed.repos:
        note(f"delete  {repo}")
    for kept in doomed.removal.kept:
        note(f"keep    {kept.repo}: {kept.why}")
    if not deleting.dry_run:
        if not deleting.yes:
            confirm(f"Delete these repos ({len(doomed.repos)}) at {doomed.endpoint}, for good?", "Nothing was deleted.")
        doomed.run()
    if output.as_json:
        print(json.dumps(_removal_record(doomed.removal, deleted=not deleting.dry_run)))
    else:
        note("dry run: nothing was deleted" if deleting.dry_run else f"{len(doomed.repos)} repos deleted")
    return 0


def _removal_record(removal: Removal, *, deleted: bool) -> dict[str, object]:
    return {
        "deleted": deleted,
        "pipeline": removal.pipeline,
        "shards": list(removal.shards),
        "kept": [{"repo": kept.repo, "why": kept.why} for kept in removal.kept],
    }
